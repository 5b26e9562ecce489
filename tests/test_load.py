"""Claims about `kora.load_adapter`: two lines give the model of a run, or say what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import kora
from kora.adapters import FullFineTune, LoRA
from kora.backbones import Backbone
from kora.heads.dpt import DPTDepth
from kora.tasks import DepthTask
from tests.adapter_factory import CLASSES, edit_record, kicked, tiny_in_file, write_folder
from tests.adapters.strategies import STRATEGIES
from tests.factory import built, kick, nano


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_comes_back_with_the_same_logits(
    name: str, tmp_path: Path, images: Tensor
) -> None:
    task = kick(built(STRATEGIES[name](), backbone=tiny_in_file("tiny_vit", tmp_path))).eval()
    folder = write_folder(tmp_path / "run" / "adapter", task)
    model = kora.load_adapter(folder.parent)  # the folder of the run will do
    with torch.no_grad():
        assert torch.equal(model(images), task(images))
    assert not any(p.requires_grad for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_a_normalisation_of_its_own_comes_back(tmp_path: Path, images: Tensor) -> None:
    own = {"mean": [0.507, 0.487, 0.441], "std": [0.268, 0.257, 0.276]}
    task = kick(built(LoRA(2), backbone=Backbone("vit_nano", **own))).eval()
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task))
    assert {key: model.preprocessing[key] for key in own} == own
    assert model.backbone.normalisation == own
    with torch.no_grad():
        assert torch.equal(model(images), task(images))


def test_predictions_carry_names_and_probabilities(tmp_path: Path, images: Tensor) -> None:
    task = kicked(LoRA(2))
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task))
    with torch.no_grad():
        best = task(images).softmax(-1).max(-1)
    found = model.predict(images)
    assert [p.name for p in found] == [CLASSES[i] for i in best.indices]
    assert [p.probability for p in found] == pytest.approx(best.values.tolist())
    nameless = kora.load_adapter(write_folder(tmp_path / "b", task, class_names=[]))
    assert [p.name for p in nameless.predict(images)] == [str(int(i)) for i in best.indices]


def test_a_depth_model_gives_metres_at_the_size_of_the_images(
    tmp_path: Path, images: Tensor
) -> None:
    head = DPTDepth(features=16, bins=None, max_depth_m=4.0)
    protocol = {"preset": "full", "max_depth_m": 3.5, "flip_tta": True}
    task = DepthTask(Backbone("vit_nano"), LoRA(2), head=head, protocol=protocol)
    task.build()
    kick(task).eval()
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task, class_names=[]))
    with torch.no_grad():
        expected = task.predict_step({"image": images}, 0)["depth_m"]
        torch.testing.assert_close(model(images), expected)  # convolutions differ in the last bit
    assert model(images).shape == (3, 48, 40)
    with pytest.raises(ValueError, match="model of depth, which has no classes"):
        model.predict(images)


def test_weights_that_are_not_those_of_the_run_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "adapter", kicked(LoRA(2)))
    with pytest.raises(ValueError, match=r"'random' gives .*Give the file of those weights"):
        kora.load_adapter(folder, weights="random")


def test_weights_that_have_moved_are_named_and_can_be_given(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", kicked(LoRA(2), tiny_in_file("tiny_vit", tmp_path)))
    there, elsewhere = tmp_path / "tiny_vit.safetensors", tmp_path / "moved.safetensors"
    there.rename(elsewhere)
    with pytest.raises(FileNotFoundError, match=r"tiny_vit\.safetensors, and no such file"):
        kora.load_adapter(folder)
    assert kora.load_adapter(folder, weights=str(elsewhere)).backbone.name == "tiny_vit"


def test_random_weights_that_nobody_kept_cannot_come_back(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "adapter", built(LoRA(2), backbone=nano()))
    with pytest.raises(ValueError, match="drew its frozen weights at random"):
        kora.load_adapter(folder)


def test_full_fine_tuning_needs_no_other_weights(tmp_path: Path, images: Tensor) -> None:
    task = kick(built(FullFineTune(), backbone=nano())).eval()  # random, and kept by nobody else
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task))
    with torch.no_grad():
        assert torch.equal(model(images), task(images))


def test_a_folder_of_before_the_task_was_recorded_still_loads(
    tmp_path: Path, images: Tensor
) -> None:
    task = kicked(LoRA(2))
    folder = write_folder(tmp_path / "adapter", task)
    edit_record(folder, task=None, preprocessing=None, weights=None)
    with torch.no_grad():
        assert torch.equal(kora.load_adapter(folder)(images), task(images))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"adapter": {"class_path": "os.system", "init_args": {"command": "touch x"}}},
            "os.system",
        ),
        ({"adapter": {"class_path": "antigravity.Joke", "init_args": {}}}, "antigravity.Joke"),
        ({"adapter": {"class_path": "torch.nn.ReLU", "init_args": {}}}, "no strategy"),
        ({"adapter": {"class_path": "kora.adapters.LoRA", "init_args": {"width": 1}}}, "width"),
        ({"task": None, "head": 1}, None),
        ({"task": {"class_path": "torch.nn.ReLU", "init_args": {}}}, "ReLU"),
    ],
)
def test_a_record_names_only_classes_of_ours_and_nothing_is_run_for_it(
    parts: dict[str, Any], message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / "adapter", kicked(LoRA(2)))
    edit_record(folder, **parts)
    if message is None:
        kora.load_adapter(folder)
        return
    with pytest.raises(ValueError, match=message):
        kora.load_adapter(folder)
    assert not (tmp_path / "x").exists()
    assert "antigravity" not in sys.modules


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is no adapter folder"):
        kora.load_adapter(tmp_path)


def test_importing_kora_imports_no_torch() -> None:
    code = "import sys, kora; print('torch' in sys.modules, hasattr(kora, 'nothing'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
