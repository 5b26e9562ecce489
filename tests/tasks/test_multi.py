"""Claims about several tasks on one backbone: each answers as alone, and one pass serves all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import kora
from datamodules.recipe import ImageRecipe
from kora.adapters import (
    KoRA,
    LinearProbe,
    LoRA,
    MultiLayerProbe,
    PaperForm,
    QueryReadout,
    RefinedForm,
    Strategy,
    Sum,
    TokenReadout,
)
from kora.adapters.folder import write_record
from kora.backbone.vit import Backbone
from kora.heads import DPTDepth, LinearDepth, QuerySegmentation
from kora.runs.adapter_config import read_adapter_config
from kora.tasks import (
    AdapterTask,
    ClassificationTask,
    DepthTask,
    DetectionTask,
    SegmentationTask,
)
from tests.support.adapter_factory import write_fitted
from tests.support.cli import kora as command
from tests.support.detectors import DETECTORS
from tests.support.factory import kick

RECIPE = ImageRecipe("crop", (40, 40))


def tokens() -> KoRA:
    form = PaperForm(2, inject=False, pool="tokens", sites=["proj"])
    return KoRA(form, 4, readout=TokenReadout())


def refined() -> KoRA:
    return KoRA(RefinedForm(sites=["proj"]), 4, composer=Sum(), readout=QueryReadout())


#: A task and its arguments, by name; the order is that on the backbone.
TASKS: dict[str, Callable[[Backbone], AdapterTask]] = {
    "layers": lambda b: ClassificationTask(b, MultiLayerProbe(), num_classes=5),
    "kinds": lambda b: ClassificationTask(b, LinearProbe(), num_classes=3),
    "side": lambda b: ClassificationTask(b, KoRA(PaperForm(2, inject=False)), num_classes=4),
    "depth": lambda b: DepthTask(b, tokens(), head=LinearDepth(levels=4), protocol="full"),
    "near": lambda b: DepthTask(b, LinearProbe(), head=DPTDepth(features=8), protocol="full"),
    "masks": lambda b: SegmentationTask(b, tokens(), num_classes=3),
    "parts": lambda b: SegmentationTask(
        b, refined(), num_classes=4, head=QuerySegmentation(width=16, heads=2)
    ),
    "boxes": lambda b: DetectionTask(b, tokens(), num_classes=3, head=DETECTORS["FCOS"]()),
}


def saved(folder: Path, make: Callable[[Backbone], AdapterTask], **options: Any) -> Path:
    task = make(Backbone("vit_nano", image_size=options.pop("image_size", 32)))
    task.build()
    kick(task).eval()
    return write_fitted(folder, task, options.pop("recipe", RECIPE))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("multi")
    return {name: saved(folder / name / "adapter", make) for name, make in TASKS.items()}


@pytest.fixture(scope="module", autouse=True)
def _no_names() -> Any:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("tests.support.adapter_factory.CLASSES", [])
        yield


def test_each_answer_is_that_of_the_run_alone(runs: dict[str, Path], images: Tensor) -> None:
    found = kora.MultiTask(runs)(images)
    assert list(found) == list(TASKS)
    for name, folder in runs.items():
        alone = kora.load_adapter(folder)(images)
        torch.testing.assert_close(found[name], alone, rtol=1e-4, atol=1e-5)


def test_the_order_of_the_runs_does_not_matter(runs: dict[str, Path], images: Tensor) -> None:
    forward, backward = kora.MultiTask(runs), kora.MultiTask(dict(reversed(runs.items())))
    one, other = forward(images), backward(images)
    for name in runs:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_the_backbone_runs_once_for_all(runs: dict[str, Path], images: Tensor) -> None:
    model = kora.MultiTask(runs)
    calls = []
    model.backbone.model.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    model(images)
    model(images)
    assert len(calls) == 2
    assert len({id(member.model.backbone) for member in model.members.values()}) == 1


def test_a_photo_gets_the_answer_of_each_task(runs: dict[str, Path], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    found = kora.MultiTask(runs).predict(tmp_path / "photo.png", top_k=2)
    alone = kora.load_adapter(runs["layers"]).predict(tmp_path / "photo.png", top_k=2)
    assert not isinstance(alone, list)
    assert found["layers"].label == alone.label
    assert found["layers"].probability == pytest.approx(alone.probability, abs=1e-4)
    assert len(found["layers"].top) == 2
    assert found["depth"].shape == found["masks"].shape == (40, 40)  # what the crop leaves
    assert found["masks"].dtype == np.uint8
    boxes = kora.load_adapter(runs["boxes"]).detect(tmp_path / "photo.png")
    assert [one.label for one in found["boxes"]] == [one.label for one in boxes]
    assert found["boxes"][0].box == pytest.approx(boxes[0].box, abs=1e-3)


def test_a_prediction_names_its_file_as_that_of_one_model_does(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "photo.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    model = kora.MultiTask(runs)
    assert model.predict("~/photo.png")["layers"].source == str(tmp_path / "photo.png")
    assert kora.load_adapter(runs["boxes"]).detect("~/photo.png") is not None
    with pytest.raises(ValueError, match="top_k=0: expected 1 or more"):
        model.predict(tmp_path / "photo.png", top_k=0)


def test_kora_predict_with_several_runs_writes_what_each_writes_alone(
    runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = np.random.default_rng(0)
    for number, size in enumerate([(50, 70), (64, 40)]):
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    (photos / "cut.png").write_bytes(b"no image")
    names = ("layers", "depth", "masks", "boxes")
    chosen = [runs[name] for name in names]
    said = command(capfd, "predict", *chosen, "--images", photos, "--out", tmp_path / "all")
    assert said.code == 0, said.err
    for name, folder in zip(names, chosen, strict=True):
        alone, beside = tmp_path / "alone" / name, tmp_path / "all" / name
        told = command(capfd, "predict", folder, "--images", photos, "--out", alone)
        assert told.code == 0, told.err
        one, other = (rows_of(place / "predictions.csv") for place in (alone, beside))
        assert [row["file"] for row in one] == [row["file"] for row in other]
        assert [row["error"] for row in one] == [row["error"] for row in other]
        for mine, theirs in zip(one, other, strict=True):
            for key in mine:
                if key in ("probability", "min_m", "max_m", "share", "score") and mine[key]:
                    assert float(mine[key]) == pytest.approx(float(theirs[key]), abs=2e-3)
                else:
                    assert mine[key] == theirs[key]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_list_of_runs_is_named_by_their_experiments(tmp_path: Path) -> None:
    paths = [saved(tmp_path / name / "adapter", TASKS["kinds"]) for name in ("a", "b")]
    assert list(kora.MultiTask(paths).members) == ["a", "b"]


def test_no_experiment_leads_out_of_the_folder_of_predictions(tmp_path: Path) -> None:
    paths = [saved(tmp_path / name / "adapter", TASKS["kinds"]) for name in ("a", "b", "c")]
    for path, experiment in zip(paths, ("/home/you/x", "../../x", ".."), strict=True):
        write_record(path, {**read_adapter_config(path), "experiment": experiment})
    assert list(kora.MultiTask(paths).members) == ["-home-you-x", "..-..-x", "c"]


def lora(backbone: Backbone) -> AdapterTask:
    return ClassificationTask(backbone, LoRA(2), num_classes=3)


def injected(backbone: Backbone) -> AdapterTask:
    adapter: Strategy = KoRA(PaperForm(2))
    return ClassificationTask(backbone, adapter, num_classes=3)


@pytest.mark.parametrize(
    ("make", "options", "said"),
    [
        (lora, {}, r"LoRA changes what the backbone computes.*load this run alone"),
        (injected, {}, "KoRA changes what the backbone computes"),
        (TASKS["kinds"], {"image_size": 64}, "its backbone has image_size 64, and the shared"),
        (TASKS["kinds"], {"recipe": ImageRecipe("stretch", (40, 40))}, "they see other pixels"),
        (
            lambda b: DepthTask(b, protocol={"preset": "full", "flip_tta": True}),
            {},
            "evaluated on mirrored images",
        ),
        (
            lambda b: SegmentationTask(b, num_classes=3, protocol="slide"),
            {},
            "evaluated on windows",
        ),
    ],
)
def test_a_run_that_cannot_share_the_pass_is_refused_with_the_reason(
    make: Callable[[Backbone], AdapterTask],
    options: dict[str, Any],
    said: str,
    runs: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = saved(tmp_path / "other" / "adapter", make, **options)
    with pytest.raises(ValueError, match=said) as caught:
        kora.MultiTask([runs["kinds"], folder])
    assert str(folder) in str(caught.value)


def test_one_run_alone_is_no_case_for_it(runs: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="found 1 runs, expected two or more"):
        kora.MultiTask([runs["kinds"]])
    with pytest.raises(ValueError, match="found 1 runs, expected two or more"):
        kora.MultiTask("runs/kinds")


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs the extra onnx")
@pytest.mark.slow
def test_one_graph_has_an_output_for_each_task(
    runs: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = [runs[name] for name in ("layers", "depth", "parts", "boxes")]
    out = tmp_path / "graph"
    done = command(capfd, "export", *chosen, "--format", "onnx", "--out", out)
    assert done.code == 0, done.err
    record = json.loads((out / "export.json").read_text())
    assert list(record["tasks"]) == ["layers", "depth", "parts", "boxes"]
    parts = ["boxes_boxes", "boxes_scores", "boxes_labels"]
    assert record["outputs"] == ["layers", "depth", "parts", *parts]
    assert record["largest_difference"] < 1e-4 * max(1, record["largest_output"])
    refused = command(capfd, "export", *chosen, "--format", "timm", "--out", out)
    assert refused.code == 2
    assert "--format onnx --out FOLDER" in refused.err
