"""Claims about `--format timm`: timm's plain model alone says what the run's model says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

import kora
from kora.adapters import (
    SSF,
    BitFit,
    DoRA,
    FullFineTune,
    KoRA,
    LinearProbe,
    LoRA,
    PaperForm,
    Strategy,
)
from kora.export.command import RECORD, export
from kora.tasks import DepthTask
from tests.support.adapter_factory import CLASSES, kicked, tiny_in_file, write_folder
from tests.support.exports import run_lines
from tests.support.factory import kick
from tests.support.families import DEAD_QKV, TINY
from tests.support.faults import small_disk

MERGED = [
    LinearProbe(),
    FullFineTune(),
    LoRA(2, 0.5, sites=["q", "v", "proj"]),
    DoRA(2, 0.5),
    SSF(),
    BitFit(),
]


@pytest.mark.parametrize("adapter", MERGED, ids=lambda a: a.label)
def test_the_printed_lines_load_it_and_it_gives_the_same_logits(
    adapter: Strategy, tmp_path: Path, images: Tensor
) -> None:
    model = kora.load_adapter(write_folder(tmp_path / "adapter", kicked(adapter)))
    written = export(model, "timm", tmp_path / "out")
    assert written.difference is not None
    assert written.difference < 1e-5
    plain = run_lines(tmp_path / "out")
    with torch.no_grad():
        found = plain(model.backbone.preprocess(images))
    torch.testing.assert_close(found, model(images), rtol=0, atol=1e-5)
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in state.values())


@pytest.mark.parametrize("family", TINY)
def test_every_family_takes_the_head_as_its_classifier(
    family: str, tmp_path: Path, images: Tensor
) -> None:
    sites = ["proj", "fc2"] if family in DEAD_QKV else ["proj", "q"]
    task = kicked(LoRA(2, sites=sites), tiny_in_file(family, tmp_path))
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task))
    export(model, "timm", tmp_path / "out")
    plain = timm.create_model(family, num_classes=7, img_size=TINY[family][1]).eval()
    plain.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    with torch.no_grad():
        found = plain(model.backbone.preprocess(images))
    torch.testing.assert_close(found, model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["timm", "peft"])
def test_its_files_have_the_mode_of_other_files(form: str, tmp_path: Path) -> None:
    model = kora.load_adapter(write_folder(tmp_path / "adapter", kicked(LoRA(2))))
    export(model, form, tmp_path / "out")
    (tmp_path / "other").touch()
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert set(modes.values()) == {(tmp_path / "other").stat().st_mode}, modes


def test_preprocessing_is_recorded_beside_it_and_is_what_the_backbone_does(
    tmp_path: Path,
) -> None:
    model = kora.load_adapter(write_folder(tmp_path / "adapter", kicked(LoRA(2))))
    export(model, "timm", tmp_path / "out")
    record = json.loads((tmp_path / "out" / RECORD).read_text())
    assert record["class_names"] == CLASSES
    *_, scale, resize, normalise = record["preprocessing"]["steps"]
    images = torch.randint(0, 256, (2, 3, 50, 90), dtype=torch.uint8)
    x = torch.nn.functional.interpolate(
        images.float() * scale["factor"],
        resize["size"],
        mode=resize["filter"],
        antialias=resize["antialias"],
        align_corners=False,
    ).clamp(*resize["clip"])
    mean, std = (torch.tensor(normalise[key])[:, None, None] for key in ("mean", "std"))
    torch.testing.assert_close((x - mean) / std, model.backbone.preprocess(images))


def test_what_has_no_merge_is_refused_with_the_reason_and_leaves_nothing(tmp_path: Path) -> None:
    model = kora.load_adapter(write_folder(tmp_path / "adapter", kicked(KoRA(PaperForm(2), 4))))
    with pytest.raises(ValueError, match=r"KoRA cannot be folded into the weights"):
        export(model, "timm", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_a_depth_head_is_refused(tmp_path: Path) -> None:
    task = DepthTask(kicked(None).backbone, LoRA(2))
    task.build()
    model = kora.load_adapter(write_folder(tmp_path / "a", kick(task)))
    with pytest.raises(ValueError, match=r"LinearDepth of this run is not a classifier"):
        export(model, "timm", tmp_path / "out")


def test_a_difference_above_the_tolerance_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = kora.load_adapter(write_folder(tmp_path / "adapter", kicked(LoRA(2))))
    with pytest.raises(RuntimeError, match=r"differ from the run's model by up to .*Nothing was"):
        export(model, "timm", tmp_path / "out", tolerance=1e-12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


def test_an_earlier_export_is_replaced_and_nothing_else_is_deleted(tmp_path: Path) -> None:
    model = kora.load_adapter(write_folder(tmp_path / "adapter", kicked(LoRA(2))))
    for _ in range(2):
        export(model, "timm", tmp_path / "out")
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    for folder, message in (
        ("out", "holds mine too, .* would delete"),
        ("link", "is a symbolic link"),
        ("adapter", "is there and is no export"),
    ):
        with pytest.raises(ValueError, match=message):
            export(model, "timm", tmp_path / folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path / "out")
        with pytest.raises(ValueError, match="you are in"):
            export(model, "timm", Path())
    assert (tmp_path / "out" / "mine").is_file()
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


def test_a_full_disk_is_told_and_nothing_is_left_there(tmp_path: Path) -> None:
    model = kora.load_adapter(write_folder(tmp_path / "adapter", kicked(LoRA(2))))
    with small_disk(tmp_path / "small", size_mib=1) as disk:
        with pytest.raises(OSError, match=r"small/out cannot be written: .*Make room"):
            export(model, "timm", disk / "out")
        assert not list(disk.iterdir())
