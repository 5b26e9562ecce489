"""`kora list` reads names and first lines from source, and misses none."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path

import pytest
from lightning import LightningDataModule
from torch import nn

import datamodules.classes
import kora.adapters
import kora.heads
import kora.losses
from kora.adapters import Composer, NodeForm, NodeMatrix, Readout, Strategy
from kora.cli.listing import (
    PARTS,
    config_claim,
    describe_classes,
    find_configs,
    find_subclasses,
    is_grid,
)
from kora.heads import DepthHead, SegmentationHead
from kora.losses import DepthLoss
from tests.support.cli import REPOSITORY


def exported(module: object, base: type) -> set[str]:
    """Names of the classes below a base that a package exports."""
    return {
        name
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, base) and kind is not base
    }


@pytest.mark.parametrize("base", [Strategy, Composer, Readout, NodeForm, NodeMatrix])
def test_every_exported_part_of_an_adapter_is_listed(base: type) -> None:
    found = find_subclasses(REPOSITORY / "kora/adapters", base.__name__)
    assert found.keys() == exported(kora.adapters, base)


def test_every_other_part_of_a_kora_is_listed() -> None:
    """What `KoRA` and its nodes take as an object, of which there is one class."""
    takers = (kora.adapters.KoRA, kora.adapters.PaperForm, kora.adapters.RefinedForm)
    objects = {
        kind.__name__
        for taker in takers
        for hint in typing.get_type_hints(taker.__init__).values()
        for kind in (hint, *typing.get_args(hint))
        if inspect.isclass(kind) and issubclass(kind, nn.Module)
    } - {"Composer", "Readout", "NodeForm", "NodeMatrix"}
    assert objects == {"Injection", "Feedback"} == set(PARTS)
    found = describe_classes(REPOSITORY / "kora/adapters", PARTS)
    assert list(found) == list(PARTS)
    assert all(found.values())


@pytest.mark.parametrize("base", [DepthHead, SegmentationHead])
def test_every_head_of_a_dense_task_is_listed(base: type) -> None:
    heads = find_subclasses(REPOSITORY / "kora/heads", base.__name__)
    assert heads.keys() == exported(kora.heads, base)


def test_every_loss_of_depth_is_listed() -> None:
    losses = find_subclasses(REPOSITORY / "kora", "DepthLoss")
    assert losses.keys() == exported(kora.losses, DepthLoss)


def test_the_strategies_of_the_paper_are_listed() -> None:
    found = find_subclasses(REPOSITORY / "kora/adapters", "Strategy")
    assert {"LinearProbe", "FullFineTune", "LoRA", "KoRA"} <= found.keys()


def test_every_exported_data_module_is_listed() -> None:
    found = find_subclasses(REPOSITORY / "datamodules", "ImageDataModule")
    classes = datamodules.classes
    assert found.keys() == exported(classes, LightningDataModule) - {"ImageDataModule"}
    assert set(datamodules.__all__) == set(classes.__all__)


@pytest.mark.parametrize(
    ("folder", "base"),
    [
        ("kora/adapters", "Strategy"),
        ("kora/adapters", "Composer"),
        ("kora/adapters", "Readout"),
        ("kora/heads", "DepthHead"),
        ("kora/heads", "SegmentationHead"),
        ("kora", "DepthLoss"),
        ("datamodules", "ImageDataModule"),
    ],
)
def test_every_listed_class_says_what_it_is(folder: str, base: str) -> None:
    assert all(find_subclasses(REPOSITORY / folder, base).values())


def test_grandchildren_count_and_private_classes_do_not(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text(
        'class Child(package.Base):\n    """First line.\n\n    More.\n    """\n\n'
        "class _Hidden(Base):\n    pass\n\n"
        "class Other(Unknown):\n    pass\n"
    )
    (tmp_path / "two.py").write_text('class Grandchild(Child):\n    """Another."""\n')
    assert find_subclasses(tmp_path, "Base") == {"Child": "First line.", "Grandchild": "Another."}


def test_nothing_is_imported_to_be_listed(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("class Child(Base):\n    pass\n\nraise SystemExit(3)\n")
    assert find_subclasses(tmp_path, "Base") == {"Child": ""}


def test_a_config_is_listed_with_its_whole_claim_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a.yaml").write_text("#\n# What it\n# runs.\n#\n# Run: it\nkey: 1\n")
    (tmp_path / "b.yaml").write_text("key: '# no comment'\n")
    assert find_configs(tmp_path) == [tmp_path / "b.yaml", tmp_path / "deep/a.yaml"]
    assert config_claim(tmp_path / "deep/a.yaml") == "What it runs."
    assert config_claim(tmp_path / "b.yaml") == ""


def test_a_grid_is_told_by_what_it_varies_or_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "grid.yaml").write_text("vary:\n  config: [a.yaml, b.yaml]\n")
    assert is_grid(tmp_path / "grid.yaml")
    monkeypatch.chdir(REPOSITORY)
    assert is_grid(Path("configs/grids/depth_dcomp.yaml"))
    assert is_grid(Path("configs/paper/table1.yaml"))
    assert not is_grid(Path("configs/adapters/lora.yaml"))


def test_a_file_that_is_no_text_is_listed_and_a_folder_is_not(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"# A \xff claim.\n")
    (tmp_path / "folder.yaml").mkdir()
    (found,) = find_configs(tmp_path)
    assert config_claim(found) == "A \ufffd claim."
    assert not is_grid(found)
