"""Training on kept inputs is training on images, and nobody notices but the clock.

A tiny backbone, 40 training and 12 validation images, and the losses of every step of every epoch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules import ImageFolder, Synthetic
from datamodules.cache.rows import UnwritableError
from kora.adapters import FullFineTune, KoRA, LinearProbe, LoRA, PaperForm, Strategy
from kora.backbone.sharding import ShardedBackbone
from kora.backbone.vit import Backbone
from kora.feature_cache.cache import KEPT, FeatureCache
from kora.feature_cache.rules import cache_folder, why_not
from kora.heads import LinearDepth
from kora.tasks import ClassificationTask, DepthTask
from tests.support.cached import SIZES, Watch, classifier, fitted, scenes, values
from tests.support.data_factory import write_class_folders
from tests.support.factory import kick
from tests.support.families import tiny
from tests.support.faults import flip, small_disk
from tests.support.two_ranks import QUIET, on_two_ranks

pytestmark = pytest.mark.runs

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "LinearProbe": LinearProbe,
    "KoRA": lambda: KoRA(PaperForm(4, inject=False), 4),
    "KoRA-cls": lambda: KoRA(PaperForm(4, inject=False, pool="cls", sites=["q", "fc1"]), 4),
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


@pytest.mark.parametrize(("name", "workers"), [("LinearProbe", 0), ("KoRA", 2), ("KoRA-cls", 0)])
def test_every_loss_and_the_order_of_images_are_those_without_it(
    name: str, workers: int, folder: str
) -> None:
    make, data = STRATEGIES[name], {"num_workers": workers}
    images, one = fitted(classifier(make(), feature_cache=False), scenes(**data))
    task = classifier(make(), feature_cache=True, feature_cache_folder=folder)
    kept, two = fitted(task, scenes(**data))
    assert kept.images == images.images
    assert len(kept.losses) == 2 * 5
    torch.testing.assert_close(kept.losses, images.losses, rtol=0, atol=1e-4)
    assert values(two) == pytest.approx(values(one), abs=1e-4)
    assert kept.held == {frozenset({"label", "index", KEPT})}
    assert (images.passes > 0, kept.passes) == (True, 0), "the first epoch reads it already"


def test_a_test_after_a_fit_keeps_its_features_for_the_next_runs(folder: str) -> None:
    found, passes = [], []
    for option, place in ((False, folder), (True, folder), (True, folder)):
        task = classifier(LinearProbe(), feature_cache=option, feature_cache_folder=place)
        data = scenes(num_workers=1)
        _, trainer = fitted(task, data)
        seen: list[int] = []
        task.backbone.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        found.append(trainer.test(task, datamodule=data, verbose=False)[0])
        passes.append(len(seen))
        assert "image" in next(iter(data.test_dataloader())), "they are given back"
    assert found[1:] == [pytest.approx(found[0], abs=1e-4)] * 2
    assert passes[2] <= 1, "some images are compared with their rows"
    assert passes[1] > passes[2]
    assert [one.split for one in task.feature_cache.splits] == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("make", "epochs", "told"), [(LinearProbe, 2, True), (LinearProbe, 1, False), (LoRA, 2, False)]
)
def test_an_augmentation_that_costs_the_cache_says_what_it_costs(
    make: Callable[[], Strategy], epochs: int, told: bool, folder: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    task = classifier(make(), feature_cache_folder=folder)
    fitted(task, scenes(augment="flip"), trainer={"max_epochs": epochs})
    out = capsys.readouterr().out
    assert (
        "data.augment is 'flip', so each epoch brings other images. 2 x 40 images" in out
    ) == told


@pytest.mark.parametrize("workers", [0, 1])
def test_kept_views_of_an_augmentation_train_as_the_images_do(workers: int, folder: str) -> None:
    epochs = {"max_epochs": 5, "num_sanity_val_steps": 0}
    data = {"augment": "flip_crop", "augment_views": 2, "num_workers": workers}
    images, one = fitted(
        classifier(LinearProbe(), feature_cache=False), scenes(**data), trainer=epochs
    )
    task = classifier(LinearProbe(), feature_cache_folder=folder)
    kept, two = fitted(task, scenes(**data), trainer=epochs)
    assert kept.images == images.images
    torch.testing.assert_close(kept.losses, images.losses, rtol=0, atol=1e-4)
    assert values(two) == pytest.approx(values(one), abs=1e-4)
    assert kept.passes == 0
    assert len(list(Path(folder).glob("tiny_vit-*"))) == 3, "two views, and validation"
    rows = [table.table.read([0, 1]) for table in task.feature_cache.splits[:2]]
    assert not torch.equal(*rows)
    record = task.feature_cache.record()
    assert record is not None
    assert record["splits"] == ["train", "val"]


def test_as_many_epochs_as_views_do_not_pay_and_maps_are_not_moved(folder: str) -> None:
    data = {"augment": "flip", "augment_views": 2}
    task = classifier(LinearProbe(), feature_cache_folder=folder)
    fitted(task, scenes(**data), trainer={"max_epochs": 2})
    assert not Path(folder).exists()
    task = classifier(LinearProbe(), feature_cache=True, feature_cache_folder=folder)
    with pytest.raises(ValueError, match="moves maps with their images"):
        fitted(task, scenes(maps=["depth_m"], **data), trainer={"max_epochs": 3})


def test_a_test_without_a_fit_reads_a_table_that_is_there_and_fills_none(folder: str) -> None:
    task = classifier(LinearProbe(), feature_cache=True, feature_cache_folder=folder)
    data = scenes(num_workers=1)
    _, trainer = fitted(task, data)
    task.feature_cache.splits = []
    plain = trainer.test(task, datamodule=data, verbose=False)[0]
    assert len(list(Path(folder).glob("tiny_vit-*"))) == 2, "training and validation"
    with torch.no_grad():
        images = data.images("test", range(13))
        inputs = {"pooled": task.backbone(images).pooled}
    task.feature_cache.put(task, trainer, "test", inputs)
    passes: list[int] = []
    task.backbone.register_forward_hook(lambda *_: passes.append(1))
    assert trainer.test(task, datamodule=data, verbose=False)[0] == pytest.approx(plain, abs=1e-4)
    assert len(passes) <= 1, "some images are compared with their rows"


@pytest.mark.parametrize("head", [LinearDepth, lambda: LinearDepth(levels=1, cls=False)])
@pytest.mark.parametrize("flip_tta", [False, True])
def test_depth_keeps_the_tokens_that_its_head_reads(head: Any, flip_tta: bool, folder: str) -> None:
    def task(**options: Any) -> DepthTask:
        torch.manual_seed(2)
        protocol = {"preset": "full", "flip_tta": flip_tta}
        return DepthTask(tiny("tiny_vit"), LinearProbe(), head=head(), protocol=protocol, **options)

    data = {"maps": ["depth_m"]}
    images, one = fitted(task(feature_cache=False), scenes(**data))
    with_cache = task(feature_cache=True, feature_cache_folder=folder)
    kept, two = fitted(with_cache, scenes(**data))
    tokens = 1 + 4
    assert with_cache.feature_cache.splits[0].table.layout.width == 32 * (1 + tokens)
    torch.testing.assert_close(kept.losses, images.losses, rtol=0, atol=1e-4)
    assert values(two) == pytest.approx(values(one), abs=1e-4, rel=1e-4)
    assert kept.held == {frozenset({"label", "index", "depth_m", KEPT})}
    assert (kept.passes > 0) == flip_tta, "a mirrored image is not kept"


def test_all_that_is_kept_for_a_classifier_is_what_it_reads(folder: str) -> None:
    task = classifier(STRATEGIES["KoRA"](), feature_cache=True, feature_cache_folder=folder)
    fitted(task)
    nodes = 2 * (32 + 32 + 32 + 128)  # two blocks of qkv, proj, fc1, fc2
    assert task.feature_cache.splits[0].table.layout.width == 32 + nodes


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_half_the_bytes_cost_a_stated_difference(dtype: Any, most: float, folder: str) -> None:
    exact, _ = fitted(classifier(STRATEGIES["KoRA"](), feature_cache=False))
    task = classifier(
        STRATEGIES["KoRA"](),
        feature_cache=True, feature_cache_dtype=dtype, feature_cache_folder=folder,
    )  # fmt: skip
    rounded, _ = fitted(task)
    differences = (torch.tensor(rounded.losses) - torch.tensor(exact.losses)).abs()
    assert 0 < differences.max() < most
    assert task.feature_cache.record()["dtype"] == dtype


def test_under_bfloat16_autocast_it_keeps_what_autocast_gives(folder: str) -> None:
    precision = {"precision": "bf16-mixed"}
    make = STRATEGIES["KoRA"]
    images, _ = fitted(classifier(make(), feature_cache=False), trainer=precision)
    task = classifier(make(), feature_cache=True, feature_cache_folder=folder)
    kept, _ = fitted(task, trainer=precision)
    torch.testing.assert_close(kept.losses, images.losses, rtol=0, atol=1e-4)


def test_a_second_run_computes_nothing_and_is_the_same_to_the_bit(folder: str) -> None:
    make, options = STRATEGIES["KoRA"], {"feature_cache": True, "feature_cache_folder": folder}
    first, second = classifier(make(), **options), classifier(make(), **options)
    one, _ = fitted(first)
    data = scenes(batch_size=9, num_workers=2)
    two, _ = fitted(second, data)
    assert two.losses == one.losses
    for dataset in data.loader_datasets.values():
        assert dataset.source.made.sum() == 8  # those that are compared with their rows
    assert first.feature_cache.record()["images_computed"] == 52
    assert second.feature_cache.record()["images_computed"] == 0


def test_runs_that_read_the_same_share_it_and_others_do_not(folder: str) -> None:
    def tables(strategy: Strategy, data: Synthetic | None = None, **options: Any) -> set[str]:
        task = classifier(strategy, feature_cache=True, feature_cache_folder=folder, **options)
        fitted(task, data, trainer={"max_epochs": 1})
        return {str(filled.table.folder) for filled in task.feature_cache.splits}

    make = STRATEGIES["KoRA"]
    first = tables(make())
    assert len(first) == 2, "training and validation"
    assert tables(KoRA(PaperForm(2, inject=False), 3, alpha=0.5), scenes(batch_size=4)) == first
    others = [
        tables(LinearProbe()),
        tables(KoRA(PaperForm(4, inject=False, sites=["qkv"]), 4)),
        tables(KoRA(PaperForm(4, inject=False, pool="cls"), 4)),
        tables(make(), scenes(scene_seed=1)),
        tables(make(), scenes(val_images=13)),
        tables(make(), feature_cache_dtype="bfloat16"),
        tables(make(), backbone=tiny("tiny_deit3")),
        tables(make(), backbone=Backbone("tiny_vit", weights="random", image_size=32)),
    ]
    assert not any(first & other for other in others)


@pytest.mark.parametrize("damage", [lambda path: flip(path), lambda path: path.unlink()])
def test_damage_is_noticed_said_in_a_line_and_filled_anew(
    damage: Callable[[Path], None], folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"feature_cache": True, "feature_cache_folder": folder}
    task = classifier(LinearProbe(), **options)
    before, _ = fitted(task)
    damage(task.feature_cache.splits[0].table.folder / "features.npy")
    capsys.readouterr()
    after, _ = fitted(classifier(LinearProbe(), **options))
    assert after.losses == before.losses
    said = [line for line in capsys.readouterr().out.splitlines() if "anew" in line]
    assert len(said) == 1
    assert "damaged in row 19: it is" in said[0] or "cannot be read" in said[0]


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], dict[str, Any], str]] = {
    "an adapter in the backbone": (lambda: classifier(LoRA(2)), {}, {}, "LoRA changes what"),
    "an injected KoRA": (lambda: classifier(KoRA(PaperForm(2), 2)), {}, {}, "KoRA changes what"),
    "augmentation": (
        lambda: classifier(LinearProbe()), {"augment": "flip"}, {}, "data.augment is 'flip'",
    ),
    "a backbone in shards": (
        lambda: classifier(LinearProbe()), {},
        {"strategy": ShardedBackbone(), "devices": 1}, "in shards",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_where_nothing_stays_the_same_on_is_an_error_and_auto_trains_on_images(
    case: str, tmp_path: Path
) -> None:
    make, data, trainer, reason = REFUSED[case]
    task = make()
    task.feature_cache = FeatureCache(True, "float32", str(tmp_path))
    if case != "a backbone in shards":  # whose process group cannot be made twice
        task.feature_cache.option = "auto"
        fitted(task, scenes(**data), trainer={"max_epochs": 2, **trainer})
        assert task.feature_cache.record() is None
        task = make()
        task.feature_cache = FeatureCache(True, "float32", str(tmp_path))
    with pytest.raises(
        ValueError, match=f"feature cache is not possible: .*{reason}.*feature_cache: auto"
    ):
        fitted(task, scenes(**data), trainer=trainer)
    assert list(tmp_path.iterdir()) == []


class OwnForward(LinearProbe):
    """A strategy of somebody who knows nothing of all this."""

    def forward(self, backbone: Backbone, images: Tensor) -> Any:
        features = super().forward(backbone, images)
        return features._replace(pooled=features.pooled + images.float().mean())


def test_a_strategy_with_a_forward_of_its_own_must_not_be_kept() -> None:
    with pytest.raises(ValueError, match="OwnForward has a forward of its own"):
        fitted(classifier(OwnForward(), feature_cache=True))


class OwnStep(ClassificationTask):
    """A task of somebody who knows nothing of all this."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(batch["image"]), batch["label"])


class KnowingStep(OwnStep):
    """And of somebody who does."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self(self.inputs(batch)), batch["label"])

    def cached_splits(self) -> tuple[str, ...]:
        return ("train",)


def test_a_task_with_a_step_of_its_own_gets_images_until_it_says_that_it_needs_none(
    folder: str,
) -> None:
    images, _ = fitted(OwnStep(tiny("tiny_vit"), LinearProbe(), feature_cache_folder=folder))
    assert images.passes > 0
    with pytest.raises(ValueError, match="OwnStep has a training_step of its own"):
        fitted(OwnStep(tiny("tiny_vit"), LinearProbe(), feature_cache=True))
    knowing = KnowingStep(tiny("tiny_vit"), LinearProbe(), feature_cache_folder=folder)
    assert KEPT in next(iter(fitted(knowing)[0].held))


@pytest.mark.parametrize("before", [lambda: LoRA(2), FullFineTune])
def test_a_backbone_that_another_adapter_has_changed_is_not_kept_as_a_frozen_one(
    before: Callable[[], Strategy], folder: str
) -> None:
    backbone = tiny("tiny_vit")
    fitted(classifier(before(), backbone))
    task = classifier(LinearProbe(), backbone, feature_cache=True, feature_cache_folder=folder)
    with pytest.raises(
        ValueError, match=r"feature cache is not possible: (LoRA|FullFineTune) changes what"
    ):
        fitted(task.eval())
    again = classifier(LinearProbe(), backbone, feature_cache_folder=folder)
    assert fitted(again)[0].passes > 0


class Repainted(Synthetic):
    """The same paths and sizes, and other images."""

    def read(self, part: Any, positions: Any) -> Any:
        batch = super().read(part, positions)
        return {**batch, "image": 255 - batch["image"]}


def test_a_table_that_is_not_of_these_images_is_filled_anew(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    make, options = STRATEGIES["KoRA"], {"feature_cache": True, "feature_cache_folder": folder}
    fitted(classifier(make(), **options))
    expected, _ = fitted(classifier(make(), feature_cache=False), Repainted(image_size=32, **SIZES))
    capsys.readouterr()
    found, _ = fitted(classifier(make(), **options), Repainted(image_size=32, **SIZES))
    torch.testing.assert_close(found.losses, expected.losses, rtol=0, atol=1e-4)
    assert capsys.readouterr().out.count("does not match these images: it is filled anew.") == 2


class Turning(Synthetic):
    """A data set that turns images at random by itself, as those of torchvision do."""

    def make_dataset(self, split: Any) -> Any:
        source: Any = super().make_dataset(split)

        class Turned(Dataset[Any]):
            def __len__(self) -> int:
                return len(source)

            def __getitem__(self, row: int) -> Any:
                sample = source[row]
                turns = int(torch.randint(4, ()))
                return {**sample, "image": sample["image"].rot90(turns, (1, 2))}

        return Turned()

    collate = None


def test_images_that_are_others_at_each_reading_are_not_kept(
    folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(option: Any) -> Watch:
        task = classifier(LinearProbe(), feature_cache=option, feature_cache_folder=folder)
        return fitted(task, Turning(image_size=32, **SIZES))[0]

    assert fit("auto").passes > 0
    said = "Turning gives a different image each time it is asked for the same one"
    assert f"no feature cache: {said}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=said):
        fit(True)


class Darker(ClassificationTask):
    """Changes the images on their way."""

    def forward(self, images: Any) -> Tensor:
        return super().forward(images // 2)


def test_a_task_with_a_forward_of_its_own_gets_images(folder: str) -> None:
    watch, _ = fitted(Darker(tiny("tiny_vit"), LinearProbe(), feature_cache_folder=folder))
    assert watch.passes > 0
    with pytest.raises(ValueError, match="Darker has a forward of its own"):
        fitted(Darker(tiny("tiny_vit"), LinearProbe(), feature_cache=True))


class Noisy(Synthetic):
    """Changes every batch in a hook of its own."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return {**batch, "image": batch["image"].flip(-1)}


def test_data_that_change_their_batches_must_not_be_kept() -> None:
    with pytest.raises(ValueError, match="Noisy changes batches in on_after_batch_transfer"):
        fitted(classifier(LinearProbe(), feature_cache=True), Noisy(image_size=32, **SIZES))


@pytest.mark.parametrize(
    "trainer",
    [
        {"max_epochs": 1},
        {"max_epochs": 2, "limit_train_batches": 1},  # one batch; 1.0 is all of them
        {"max_epochs": None, "max_steps": 5},
        {"max_epochs": 9, "fast_dev_run": True},
        {"max_epochs": 9, "overfit_batches": 1},
    ],
)
def test_auto_fills_nothing_that_is_read_once_and_takes_what_is_there(
    trainer: dict[str, Any], folder: str, full: str
) -> None:
    def record(folder: str) -> Any:
        task = classifier(LinearProbe(), feature_cache_folder=folder)
        fitted(task, trainer=trainer)
        return task.feature_cache.record()

    assert record(folder) is None
    assert record(full)["images_computed"] == 0


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with all that a linear probe reads of the scenes."""
    folder = str(tmp_path_factory.mktemp("full"))
    fitted(classifier(LinearProbe(), feature_cache_folder=folder), trainer={"max_epochs": 2})
    return folder


@pytest.mark.parametrize(("limit", "splits"), [(1.0, ["train", "val"]), (1, ["train"])])
def test_validation_images_are_kept_where_all_of_them_are_read(
    limit: float, splits: list[str], folder: str
) -> None:
    task = classifier(LinearProbe(), feature_cache=True, feature_cache_folder=folder)
    fitted(task, trainer={"max_epochs": 1, "limit_val_batches": limit})
    assert task.feature_cache.record()["splits"] == splits


def test_auto_says_why_there_is_no_room_and_trains_on_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make = STRATEGIES["KoRA"]
    exact, _ = fitted(classifier(make(), feature_cache=False))
    with small_disk(tmp_path / "disk", size_mib=1) as disk:
        (disk / "other").write_bytes(bytes(900 * 1024))
        task = classifier(make(), feature_cache_folder=str(disk))
        watch, _ = fitted(task)
        assert watch.losses == exact.losses
        said = capsys.readouterr().out
        assert f"no feature cache: the feature cache needs 75 KiB, and {disk} has 12" in said
        on = classifier(make(), feature_cache=True, feature_cache_folder=str(disk))
        fitted(on)  # takes what auto leaves to others
        full = classifier(
            KoRA(PaperForm(4, inject=False, pool="cls"), 4),
            feature_cache=True, feature_cache_folder=str(disk),
        )  # fmt: skip
        with pytest.raises(UnwritableError, match=r"needs 75 KiB.*Make room"):
            fitted(full)


def test_a_folder_that_cannot_be_made_stops_on_and_not_auto(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    folder = {"feature_cache_folder": str(tmp_path / "file" / "cache")}
    task = classifier(LinearProbe(), **folder)
    fitted(task)
    assert task.feature_cache.record() is None
    assert "no feature cache: " in capsys.readouterr().out
    with pytest.raises(UnwritableError, match="cannot be written: Not a directory"):
        fitted(classifier(LinearProbe(), feature_cache=True, **folder))


def test_another_task_on_the_same_data_gets_images_again(folder: str) -> None:
    data = scenes()
    fitted(classifier(LinearProbe(), feature_cache=True, feature_cache_folder=folder), data)
    watch, _ = fitted(classifier(LoRA(2)), data)
    assert watch.held == {frozenset({"label", "index", "image"})}


@pytest.mark.parametrize("fails", [False, True])
def test_behind_a_fit_the_loaders_give_images_again(fails: bool, folder: str) -> None:
    class Fails(Callback):
        def on_validation_end(self, *args: Any) -> None:
            if fails:
                raise ZeroDivisionError

    data = scenes(num_workers=2)
    task = classifier(LinearProbe(), feature_cache=True, feature_cache_folder=folder)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        fitted(task, data, trainer={"callbacks": [Fails()]})
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert isinstance(loader, DataLoader)
        assert loader.num_workers == 2
        assert loader.dataset[0].keys() == {"label", "index", "image"}


def test_a_validation_of_one_task_reads_nothing_that_was_kept_for_another(folder: str) -> None:
    data, options = scenes(), {"feature_cache": True, "feature_cache_folder": folder}
    task = classifier(LinearProbe(), **options)
    _, trainer = fitted(task, data)
    before = trainer.validate(task, datamodule=scenes(), verbose=False)
    fitted(classifier(LinearProbe(), tiny("tiny_deit3"), **options), data)
    assert trainer.validate(task, datamodule=data, verbose=False) == before


def test_image_files_are_read_for_filling_alone(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_class_folders(tmp_path / "files")

    def data() -> ImageFolder:
        return ImageFolder(str(root), image_size=(32, 32), val_fraction=0.25, batch_size=5, seed=0)

    images, _ = fitted(classifier(LinearProbe(), feature_cache=False), data())
    task = classifier(LinearProbe(), feature_cache=True, feature_cache_folder=folder)
    kept, _ = fitted(task, data())
    torch.testing.assert_close(kept.losses, images.losses, rtol=0, atol=1e-4)
    monkeypatch.setattr(ImageFolder, "read", lambda *args: pytest.fail("an image was read"))
    task = classifier(LinearProbe(), feature_cache=True, feature_cache_folder=folder)
    again, _ = fitted(task, data())
    assert again.losses == kept.losses


def test_a_compiled_task_trains_on_what_is_kept(folder: str) -> None:
    make = STRATEGIES["KoRA"]
    plain, _ = fitted(classifier(make(), feature_cache=True, feature_cache_folder=folder))
    torch.compiler.reset()
    task = classifier(make(), feature_cache=True, feature_cache_folder=folder)
    task.compile(backend="eager")
    compiled, _ = fitted(task)
    torch.testing.assert_close(compiled.losses, plain.losses, rtol=0, atol=1e-4)


def test_a_frozen_adapter_is_kept_like_one_that_trains(folder: str) -> None:
    def task(option: bool) -> ClassificationTask:
        made = classifier(
            STRATEGIES["KoRA"](), adapter_trainable=False,
            feature_cache=option, feature_cache_folder=folder, num_classes=12,
        )  # fmt: skip
        made.build()
        return kick(made)

    images, kept = fitted(task(False))[0], fitted(task(True))[0]
    torch.testing.assert_close(kept.losses, images.losses, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"feature_cache": "maybe"}, "feature_cache='maybe', expected auto, true or false"),
        ({"feature_cache_dtype": "float8"}, "feature_cache_dtype='float8', expected one of"),
    ],
)
def test_an_unknown_option_is_an_error(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        classifier(LinearProbe(), **options)


def test_it_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KORA_CACHE", "/big/disk")
    assert cache_folder() == Path("/big/disk/features")
    monkeypatch.delenv("KORA_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/kora/features")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("~/.cache/kora/features").expanduser()


def on_a_rank(rank: int) -> dict[str, Any]:
    """Both processes fill into one folder at once; the losses of this one."""
    shared = Path(os.environ["TMPDIR"]) / "shared"
    found = {}
    for option in (False, True):
        task = classifier(
            STRATEGIES["KoRA"](), feature_cache=option, feature_cache_folder=str(shared)
        )
        watch, trainer = fitted(task, trainer={"devices": 2, "strategy": "ddp"})
        found[str(option)] = {"losses": watch.losses, "values": values(trainer)}
    found["computed"] = task.feature_cache.record()["images_computed"]
    return found


@pytest.mark.slow
def test_two_processes_share_it_and_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    ranks = on_two_ranks(on_a_rank, tmp_path)
    for found in ranks:
        torch.testing.assert_close(
            found["True"]["losses"], found["False"]["losses"], rtol=0, atol=1e-4
        )
        assert found["True"]["values"] == pytest.approx(found["False"]["values"], abs=1e-4)
    assert sum(found["computed"] for found in ranks) == 52, "each image by one of them"


@pytest.mark.parametrize("pool", ["mean", "tokens"])
def test_all_tokens_of_all_sites_are_not_kept_where_a_gpu_computes_them(pool: Any) -> None:
    task = classifier(KoRA(PaperForm(2, inject=False, pool=pool), 2), num_classes=12)
    task.build()
    task.eval()
    trainer = Trainer(**QUIET)
    assert why_not(task, trainer, scenes()) is None
    trainer.strategy._root_device = torch.device("meta")  # any but the CPU
    said = why_not(task, trainer, scenes())
    assert (said is None) == (pool == "mean")
    assert said is None or "all tokens of its blocks, which meta computes faster" in said
