"""Claims about `kora.load_adapter`: two lines give the model of a run, or say what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

import kora
from datamodules.recipe import ImageRecipe, UnreadableImageError
from kora.adapters import AdapterFusion, Bottleneck, FullFineTune, LoRA
from kora.backbone.vit import Backbone
from kora.heads.dpt import DPTDepth
from kora.tasks import DepthTask
from kora.tasks.load import AdaptedModel
from tests.support.adapter_factory import (
    CLASSES,
    edit_record,
    kicked,
    tiny_in_file,
    write_fitted,
    write_folder,
)
from tests.support.detectors import DETECTORS, detector
from tests.support.detectors import NAMES as OBJECTS
from tests.support.factory import built, kick, nano
from tests.support.fusion_factory import write_source
from tests.support.picture_factory import bad_files, write_photos
from tests.support.strategies import STRATEGIES

#: The first of each class, and forms of KoRA that are made of other parts.
NAMES = [
    *{entry.kind: name for name, entry in reversed(STRATEGIES.items())}.values(),
    "KoRA-refined-injected", "KoRA-refined-logits", "KoRA-feedback-of-tokens",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
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


def test_a_fusion_brings_its_sources_whatever_lies_in_their_folders_now(
    tmp_path: Path, images: Tensor
) -> None:
    def source(seed: int) -> list[str]:
        places = [tmp_path / "one", tmp_path / "other"]
        backbone = Backbone("vit_nano")
        adapters = [Bottleneck(rank, "houlsby", blocks=[0]) for rank in (3, 4)]
        return [
            write_source(place, adapter, seed=seed, backbone=backbone)
            for place, adapter in zip(places, adapters, strict=True)
        ]

    task = kicked(AdapterFusion(source(1)))
    folder = write_folder(tmp_path / "adapter", task)
    source(2)
    with torch.no_grad():
        assert torch.equal(kora.load_adapter(folder)(images), task(images))


def test_a_normalisation_of_its_own_comes_back(tmp_path: Path, images: Tensor) -> None:
    own = {"mean": [0.507, 0.487, 0.441], "std": [0.268, 0.257, 0.276]}
    task = kick(built(LoRA(2), backbone=Backbone("vit_nano", **own))).eval()
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task))
    assert model.preprocessing["steps"][-1] == {"step": "normalise", **own}
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


FIT = ImageRecipe("crop", (40, 24))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> AdaptedModel:
    """The model of a run whose data module cut every image to 40 x 24 pixels."""
    task = kicked(LoRA(2))
    return kora.load_adapter(write_fitted(tmp_path_factory.mktemp("run") / "adapter", task, FIT))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_photos(tmp_path_factory.mktemp("photos"))


def test_a_photo_gets_one_answer_in_whatever_form_it_comes(
    fitted: AdaptedModel, photos: list[Path]
) -> None:
    for path in [*photos[:16:5], *photos[16:]]:
        found = fitted.predict(path)
        assert found.source == str(path)
        whole = np.asarray(ImageRecipe().open(path)).copy()
        tensor = torch.from_numpy(whole).permute(2, 0, 1)
        as_trained = torch.from_numpy(FIT(path))[None]
        with torch.no_grad():
            best = fitted.task(as_trained).softmax(-1).max(-1)
            called = fitted(tensor[None]).softmax(-1).max(-1)
        assert found[:3] == (CLASSES[best.indices[0]], pytest.approx(best.values[0].item()),
                             int(best.indices[0]))  # fmt: skip
        assert called.values[0].item() == pytest.approx(found.probability, abs=1e-6)
        with Image.open(path) as opened:
            others = [fitted.predict(picture) for picture in (str(path), opened, whole, tensor)]
        others += fitted.predict(tensor[None]) + fitted.predict(whole[None] / 255)
        assert all(
            (one.label, one.probability) == (found.label, pytest.approx(found.probability))
            for one in others
        )


def test_a_list_and_a_folder_give_a_list_and_one_picture_one_answer(
    fitted: AdaptedModel, photos: list[Path]
) -> None:
    one_by_one = [fitted.predict(path) for path in photos]
    for several in (photos, [str(path) for path in photos], photos[0].parent):
        found = fitted.predict(several, batch_size=5)
        assert [p.source for p in found] == [str(path) for path in photos]
        assert [p.label for p in found] == [p.label for p in one_by_one]
        assert [p.probability for p in found] == pytest.approx([p.probability for p in one_by_one])
    assert fitted.predict([]) == []


def test_top_k_names_the_next_classes_with_their_probabilities(
    fitted: AdaptedModel, photos: list[Path]
) -> None:
    found = fitted.predict(photos[0], top_k=3)
    assert found.top[0] == found[:3]
    assert [c.probability for c in found.top] == sorted([c.probability for c in found.top])[::-1]
    assert [c.name for c in found.top] == [CLASSES[c.label] for c in found.top]
    everything = fitted.predict(photos[0], top_k=99).top
    assert len(everything) == len(CLASSES)
    assert sum(c.probability for c in everything) == pytest.approx(1)
    with pytest.raises(ValueError, match="top_k=0"):
        fitted.predict(photos[0], top_k=0)


def test_a_bad_picture_has_one_line_and_a_folder_with_none_has_one(
    fitted: AdaptedModel, tmp_path: Path
) -> None:
    for name, reason in bad_files(tmp_path / "bad").items():
        with pytest.raises(UnreadableImageError, match=f"{name} \\(.*{reason}"):
            fitted.predict(tmp_path / "bad" / name)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none holds no image, by the names of its 0 files"):
        fitted.predict(tmp_path / "none")


def test_folders_of_before_the_steps_were_stored_mean_the_same(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "adapter", kicked(LoRA(2)))
    before = {"size": [32, 32], "resize": "stretch", "interpolation": "bicubic"}
    loader = {"image_size": [24, 40], "resize": "crop"}
    edit_record(folder, preprocessing={"loader": loader, **before})
    assert kora.load_adapter(folder).recipe == ImageRecipe("crop", (24, 40), "dropped")
    edit_record(folder, preprocessing={"loader": None, **before})
    assert kora.load_adapter(folder).recipe == ImageRecipe(transparency="dropped")
    edit_record(folder, preprocessing=None)
    assert kora.load_adapter(folder).recipe == ImageRecipe(transparency="dropped")


@pytest.mark.parametrize("recipe", [FIT, ImageRecipe("stretch", (32, 32)), ImageRecipe()])
def test_the_steps_of_a_record_say_the_recipe_once(recipe: ImageRecipe, tmp_path: Path) -> None:
    folder = write_fitted(tmp_path / "adapter", kicked(None), recipe)
    model = kora.load_adapter(folder)
    assert model.recipe == recipe
    names = [step["step"] for step in model.preprocessing["steps"]]
    resizes = (recipe.size is not None) + (recipe.size != model.backbone.size)
    middle = ["resize"] * (recipe.size is not None) + ["scale"]
    middle += ["resize"] * (resizes - (recipe.size is not None))
    assert names == ["open", "orient", "convert", *middle, "normalise"]


def test_a_depth_model_gives_metres_at_the_size_of_the_images(
    tmp_path: Path, images: Tensor
) -> None:
    head = DPTDepth(features=16, bins=None, max_depth_m=4.0)
    protocol = {"preset": "full", "max_depth_m": 3.5, "flip_tta": True}
    task = DepthTask(Backbone("vit_nano", image_size=32), LoRA(2), head=head, protocol=protocol)
    task.build()
    kick(task).eval()
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task, class_names=[]))
    with torch.no_grad():
        expected = task.predict_step({"image": images}, 0)["depth_m"]
        torch.testing.assert_close(model(images), expected)  # convolutions differ in the last bit
    assert model(images).shape == (3, 48, 40)
    with pytest.raises(ValueError, match="model of depth, which has no classes"):
        model.predict(images)


@pytest.mark.parametrize("kind", DETECTORS)
def test_a_detector_gives_boxes_in_pixels_of_the_images(kind: str, tmp_path: Path) -> None:
    task = detector(kind, LoRA(2))
    recipe = ImageRecipe("contain", (24, 40))
    folder = write_fitted(tmp_path / "adapter", task, recipe)
    edit_record(folder, class_names=OBJECTS)
    model = kora.load_adapter(folder)
    picture = torch.randint(0, 256, (3, 70, 30), dtype=torch.uint8)
    fitted = torch.from_numpy(recipe(picture))[None]
    with torch.no_grad():
        own, shown = torch.tensor([[70, 30]]), torch.tensor([recipe.fitted_content((70, 30))])
        (expected,) = task.boxes_of({"image": fitted, "own_size": own, "size": shown})
        (found,) = model(picture[None])
    assert len(found["labels"])
    assert found["boxes"][:, 3].max() > 40  # beyond the fitted pixels
    torch.testing.assert_close(found, expected)
    objects = model.detect(picture)
    assert [one.box for one in objects] == [tuple(box) for box in found["boxes"].tolist()]
    assert [one.name for one in objects] == [OBJECTS[label] for label in found["labels"]]
    assert objects[0].score == max(one.score for one in objects)
    with pytest.raises(ValueError, match=r"classes are of boxes\. Call detect\(picture\)"):
        model.predict(picture)
    edit_record(folder, class_names=OBJECTS[:2])
    with pytest.raises(ValueError, match="has 2 class_names, and the head 3 classes"):
        kora.load_adapter(folder)


def test_a_box_in_the_filling_of_an_image_is_none() -> None:
    task, recipe = detector(), ImageRecipe("contain", (40, 40))
    levels: Any = task(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    (whole,) = task.own_boxes(levels, [(40, 40)], recipe)
    (left,) = task.own_boxes(levels, [(40, 10)], recipe)  # 8 columns of the backbone's 32
    inside = whole["boxes"][:, 0] < 10
    assert 0 < int(inside.sum()) < len(inside)
    assert left["scores"].tolist() == whole["scores"][inside].tolist()
    assert left["boxes"][:, 2].max() == 10


def test_a_classifier_finds_no_boxes(fitted: AdaptedModel, photos: list[Path]) -> None:
    with pytest.raises(ValueError, match=r"ClassificationTask, which finds no boxes\. Use predict"):
        fitted.detect(photos[0])


def test_weights_that_are_not_those_of_the_run_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "adapter", kicked(LoRA(2)))
    with pytest.raises(ValueError, match=r"'random' gives .*Give the file of those weights"):
        kora.load_adapter(folder, weights="random")


def test_weights_that_have_moved_are_named_and_can_be_given(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", kicked(LoRA(2), tiny_in_file("tiny_vit", tmp_path)))
    there, elsewhere = tmp_path / "tiny_vit.safetensors", tmp_path / "moved.safetensors"
    there.rename(elsewhere)
    with pytest.raises(
        FileNotFoundError, match=r"tiny_vit\.safetensors, and there is no such file"
    ):
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
        ({"adapter": {"class_path": "torch.nn.ReLU", "init_args": {}}}, "torch.nn.ReLU"),
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


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": 7}, "class_names is 7; expected a list"),
        ({"class_names": CLASSES[:-1]}, "has 6 class_names, and the head 7 classes"),
        ({"class_names": [*CLASSES[:-1], 5]}, r"class_names\.6 is 5; expected a text"),
        ({"weights": {"source": 5}}, r"weights\.source is 5; expected a text"),
        ({"weights": "x"}, "weights is 'x'; expected a table"),
        ({"preprocessing": {"steps": [7]}}, r"preprocessing\.steps\.0 is 7"),
        ({"preprocessing": {"steps": [{"step": "convert"}]}}, "does not know its preprocessing"),
        ({"metrics": {"test/accuracy": "x"}}, r"metrics\.test/accuracy is 'x'"),
    ],
)
def test_a_record_of_the_wrong_types_is_named_with_the_place(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = write_folder(tmp_path / "adapter", kicked(LoRA(2)))
    edit_record(folder, **changes)
    with pytest.raises((ValueError, RuntimeError), match=words) as caught:
        kora.load_adapter(folder)
    assert str(folder / "adapter_config.json") in str(caught.value)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(0), torch.zeros(()), torch.zeros(7, 0), torch.zeros(7).to(torch.float8_e4m3fn)],
)
def test_an_empty_tensor_or_one_of_a_strange_type_is_named(tmp_path: Path, tensor: Tensor) -> None:
    folder = write_folder(tmp_path / "adapter", kicked(LoRA(2)))
    weights = folder / "adapter_model.safetensors"
    save_file({**load_file(weights), "head.linear.bias": tensor}, weights)
    edit_record(folder, weights_sha256=None)
    with pytest.raises((ValueError, RuntimeError), match=rf"{weights}.*head\.linear\.bias"):
        kora.load_adapter(folder)
    edit_record(folder, task=None)  # of an earlier version
    with pytest.raises((ValueError, RuntimeError), match=str(folder)):
        kora.load_adapter(folder)
