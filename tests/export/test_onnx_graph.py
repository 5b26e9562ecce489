"""Claims about `--format onnx`: onnxruntime gives what the model of the run gives, or nothing.

A linear head of depth, one with queries and a detector without anchors are in the graph of
tests/tasks/test_multi.py.
"""

from __future__ import annotations

import gc
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import kora
from datamodules.recipe import ImageRecipe
from kora.adapters import VPT, KoRA, LoRA, PaperForm, Strategy, TokenReadout
from kora.backbone.vit import Backbone, Features
from kora.export.command import RECORD, export
from kora.heads import DPTDepth, LinearSegmentation
from kora.tasks import DepthTask, DetectionTask, SegmentationTask
from tests.support.adapter_factory import (
    edit_record,
    kicked,
    tiny_in_file,
    write_fitted,
    write_folder,
)
from tests.support.detectors import NAMES, detector
from tests.support.factory import kick
from tests.support.families import register_narrow

needs_extra = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="needs the extra: pip install 'kora-vit[onnx]'",
)

FOUR_BLOCKS = "tiny_vit_of_four_blocks"  # which the heads read
register_narrow(FOUR_BLOCKS, "vit_tiny_patch16_224", depth=4)


def in_file(name: str, folder: Path, *, image_size: int) -> Backbone:
    """A backbone with random weights of a file."""
    weights = folder / "weights.safetensors"
    save_file(Backbone(name, weights="random").model.state_dict(), weights)
    return Backbone(name, weights=str(weights), image_size=image_size)


def write_boxes(folder: Path, task: DetectionTask, recipe: ImageRecipe) -> Path:
    """The adapter folder of a detector, with the names of its classes."""
    edit_record(write_fitted(folder, task, recipe), class_names=NAMES)
    return folder


class OneBatch(Strategy):
    """Takes the number of images as a plain number, which a graph then holds for ever."""

    def attach(self, backbone: Backbone) -> None:
        """Nothing to create."""

    def forward(self, backbone: Backbone, images: torch.Tensor) -> Features:
        """The frozen features, multiplied by one."""
        features = super().forward(backbone, images)
        return features._replace(pooled=features.pooled * torch.ones(len(images), 1))


def test_without_the_extra_one_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # Python's own way to refuse an import
    model = kora.load_adapter(write_folder(tmp_path / "adapter", kicked(LoRA(2))))
    with pytest.raises(RuntimeError, match=r"pip install 'kora-vit\[onnx\]'"):
        export(model, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_extra
@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "merged"),
    [
        (LoRA(2, sites=["q", "v"]), True),
        (VPT(3), False),
        (KoRA(PaperForm(2, pool="tokens"), 4, readout=TokenReadout()), False),
    ],
    ids=["LoRA", "VPT", "KoRA-tokens"],
)
def test_onnxruntime_gives_the_same_logits_for_any_number_of_images(
    adapter: Strategy, merged: bool, tmp_path: Path
) -> None:
    import onnxruntime

    task = kicked(adapter, tiny_in_file("tiny_vit", tmp_path))
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task))
    written = export(model, "onnx", tmp_path / "out")
    assert written.difference is not None
    assert written.difference < 1e-5
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["merged"] is merged
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    for number in (1, 5):
        images = torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(images), rtol=0, atol=1e-5)


@needs_extra
@pytest.mark.slow
def test_depth_in_metres_can_be_exported(tmp_path: Path) -> None:
    backbone = in_file(FOUR_BLOCKS, tmp_path, image_size=32)
    task = DepthTask(backbone, LoRA(2), head=DPTDepth(features=8, bins=16), protocol="full")
    task.build()
    folder = write_folder(tmp_path / "adapter", kick(task))
    written = export(kora.load_adapter(folder), "onnx", tmp_path / "out")
    assert written.difference is not None
    assert written.difference < 1e-4


@needs_extra
@pytest.mark.slow
def test_the_scores_of_pixels_can_be_exported_for_whole_images_only(tmp_path: Path) -> None:
    for window in ("whole", "slide"):
        (tmp_path / window).mkdir()
        backbone = tiny_in_file("tiny_vit", tmp_path / window)
        head = LinearSegmentation(levels=1)
        task = SegmentationTask(backbone, LoRA(2), num_classes=3, head=head, protocol=window)
        task.build()
        # As a run writes it: its recipe stretches pictures; the graph answers at their own size.
        recipe = ImageRecipe("stretch", (24, 40))
        folder = write_fitted(tmp_path / window / "adapter", kick(task), recipe)
        edit_record(folder, class_names=[])
        model = kora.load_adapter(folder)
        if window == "slide":
            with pytest.raises(ValueError, match="evaluated with a sliding window"):
                export(model, "onnx", tmp_path / "slide" / "out")
            continue
        written = export(model, "onnx", tmp_path / "whole" / "out")
        assert written.difference is not None
        assert written.difference < 1e-4


@needs_extra
@pytest.mark.slow
def test_boxes_can_be_exported_with_their_suppression(tmp_path: Path) -> None:
    import onnxruntime

    recipe = ImageRecipe("contain", (24, 40))
    task = detector("FasterRCNN", LoRA(2), backbone=in_file("tiny_vit", tmp_path, image_size=64))
    model = kora.load_adapter(write_boxes(tmp_path / "adapter", task, recipe))
    written = export(model, "onnx", tmp_path / "out")
    assert written.difference is not None
    assert written.difference < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert [one.name for one in session.get_outputs()] == ["boxes", "scores", "labels"]
    images = torch.randint(0, 256, (5, 3, 70, 30), dtype=torch.uint8)
    boxes, scores, labels = session.run(None, {"images": images.numpy()})
    for row, expected in enumerate(model(images)):
        assert (labels[row] >= 0).sum() == len(expected["labels"]) > 0
        assert boxes[row].max() == pytest.approx(float(expected["boxes"].max()), abs=1e-3)
        assert scores[row].max() == pytest.approx(float(expected["scores"].max()), abs=1e-4)


class SharedLayer(Strategy):
    """One layer under two names, so that torch traces it through classes of its own making."""

    def attach(self, backbone: Backbone) -> None:
        """The layer."""
        self.layer = self.same_layer = torch.nn.Identity()

    def forward(self, backbone: Backbone, images: torch.Tensor) -> Features:
        """The frozen features."""
        features = super().forward(backbone, images)
        return features._replace(pooled=self.layer(features.pooled))


@needs_extra
@pytest.mark.slow
def test_after_it_the_name_of_a_class_means_this_class_alone(tmp_path: Path) -> None:
    task = kicked(SharedLayer(), tiny_in_file("tiny_vit", tmp_path))
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task), trust=[__name__])
    thresholds = gc.get_threshold()
    gc.set_threshold(10**9)  # as if it came much later
    try:
        export(model, "onnx", tmp_path / "out")
        assert not SharedLayer.__subclasses__()
    finally:
        gc.set_threshold(*thresholds)


@needs_extra
@pytest.mark.slow
def test_a_graph_that_would_take_one_batch_size_only_is_refused(tmp_path: Path) -> None:
    task = kicked(OneBatch(), tiny_in_file("tiny_vit", tmp_path))
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task), trust=[__name__])
    with pytest.raises(RuntimeError, match=r"(onnxruntime cannot run|torch cannot write)"):
        export(model, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
