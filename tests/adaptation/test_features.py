"""One pass of the backbone is as good as one for each strategy, and is never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules.recipe import ImageRecipe
from kora.adaptation.candidates import CACHED
from kora.adaptation.features import FeatureStore, SharedPass, fill
from kora.backbone.frozen_inputs import is_read
from kora.backbone.vit import Backbone
from kora.feature_cache.rules import head_reads
from kora.tasks import ClassificationTask
from tests.support.faults import flip
from tests.support.picture_factory import scene

RECIPE = ImageRecipe("crop", (64, 64))


def shared() -> SharedPass:
    return SharedPass(Backbone("vit_nano"), CACHED, 4)


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for number in range(5):
        found[f"sha{number}"] = tmp_path / f"{number}.png"
        scene(number, (70, 90)).save(found[f"sha{number}"])
    return found


def test_every_strategy_reads_what_a_pass_of_its_own_would_give() -> None:
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    one_pass = shared()
    read = one_pass.read(images)
    rows = torch.cat([tensor.flatten(1) for tensor in read.values()], dim=1)
    assert rows.shape == (3, one_pass.width)
    assert [m.task.label for m in one_pass.members] == [one.name for one in CACHED]
    for member in one_pass.members:
        task = ClassificationTask(Backbone("vit_nano"), member.candidate.strategy(), num_classes=4)
        task.build()
        with torch.no_grad():
            own = task.adapter.frozen_pass().inputs(task.backbone, images)
        own = {k: v for k, v in own.items() if is_read(k, head_reads(task))}
        mine = one_pass.inputs_of(member, rows)
        assert mine.keys() == own.keys()
        for name, tensor in own.items():
            torch.testing.assert_close(mine[name], tensor, rtol=0, atol=1e-5)


def test_the_seed_decides_with_which_weights_the_fits_begin() -> None:
    def begins(seed: int) -> list[torch.Tensor]:
        members = SharedPass(Backbone("vit_nano"), CACHED, 4, seed=seed).members
        return [tensor.detach() for one in members for tensor in one.task.trainables().values()]

    first = begins(0)
    torch.testing.assert_close(begins(0), first, rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(begins(1), first, strict=True))


def test_a_strategy_that_does_not_fit_the_backbone_is_left_out_with_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbone = Backbone("vit_base_patch16_siglip_224", weights="random", image_size=32)
    names = [member.task.label for member in SharedPass(backbone, CACHED, 4).members]
    assert names == ["LinearProbe"], "SigLIP has no CLS token"
    assert "MultiLayerProbe is left out: LayerSummaries: cls_blocks" in capsys.readouterr().out


def test_pictures_pass_once_and_new_ones_alone(tmp_path: Path, paths: dict[str, Path]) -> None:
    one_pass = shared()
    identity = one_pass.identity(RECIPE)
    some = {key: paths[key] for key in ("sha0", "sha1", "sha2")}
    assert fill(FeatureStore(tmp_path / "f", identity), one_pass, some, RECIPE) == 3
    store = FeatureStore(tmp_path / "f", identity)
    assert fill(store, one_pass, paths, RECIPE) == 2
    again = FeatureStore(tmp_path / "f", identity)
    assert again.missing(list(paths)) == []
    whole = FeatureStore(tmp_path / "other", identity)
    fill(whole, one_pass, paths, RECIPE)
    torch.testing.assert_close(again.rows(list(paths)), whole.rows(list(paths)))


def test_other_weights_or_sizes_are_other_features(tmp_path: Path, paths: dict[str, Path]) -> None:
    one_pass = shared()
    fill(FeatureStore(tmp_path / "f", one_pass.identity(RECIPE)), one_pass, paths, RECIPE)
    other = FeatureStore(tmp_path / "f", one_pass.identity(ImageRecipe("stretch", (64, 64))))
    assert len(other.missing(list(paths))) == 5


@pytest.mark.parametrize("damage", ["garbage", "a flipped bit"])
def test_a_damaged_file_costs_its_own_pictures(
    damage: str, tmp_path: Path, paths: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    one_pass = shared()
    identity = one_pass.identity(RECIPE)
    store = FeatureStore(tmp_path / "f", identity)
    fill(store, one_pass, {"sha0": paths["sha0"]}, RECIPE)
    fill(store, one_pass, paths, RECIPE)
    file = store.folder / "part_0001.safetensors"
    if damage == "garbage":
        file.write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    else:
        flip(file, 0.9)
    again = FeatureStore(tmp_path / "f", identity)
    assert again.missing(list(paths)) == ["sha1", "sha2", "sha3", "sha4"]
    assert "part_0001.safetensors cannot be read" in capsys.readouterr().out
    assert fill(again, one_pass, paths, RECIPE) == 4
    assert FeatureStore(tmp_path / "f", identity).missing(list(paths)) == []
