"""A damaged image stops a run with its path, or is left out and counted, as asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from datamodules import ImageFolder
from datamodules.recipe import UnreadableImageError
from tests.support.cli import kora, results, tiny_config, write_config
from tests.support.data_factory import write_class_folders
from tests.support.loaders import read_all


def truncate(path: Path) -> Path:
    """Half of a file, as an interrupted copy leaves it: its header is whole."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> tuple[Path, list[Path]]:
    """A folder of three classes with 8 training images each, and its two truncated images."""
    root = tmp_path / "mine"
    write_class_folders(root)
    bad = []
    for part in ("train", "test"):
        pictures = sorted(path for path in (root / part).rglob("*") if path.is_file())
        bad.append(truncate(pictures[2]))
    return root, bad


def make(root: Path, **options: object) -> ImageFolder:
    settings = {"image_size": 24, "num_workers": 0, "val_fraction": 0.25, "batch_size": 5}
    return ImageFolder(str(root), **{**settings, **options})


@pytest.mark.parametrize("workers", [0, 1])
def test_by_default_the_error_names_the_file(
    damaged: tuple[Path, list[Path]], workers: int
) -> None:
    root, bad = damaged
    data = make(root, num_workers=workers)
    with pytest.raises(UnreadableImageError, match=f"Cannot read the image {bad[1]}"):
        read_all(data.test_dataloader())


def test_skip_leaves_them_out_of_every_split_and_names_the_first(
    damaged: tuple[Path, list[Path]],
) -> None:
    root, bad = damaged
    data = make(root, on_bad_image="skip")
    with pytest.warns(UserWarning, match="leaves out 1 of") as caught:
        data.setup()
    assert [sum(str(path) in str(w.message) for w in caught) for path in bad] == [1, 1]
    whole = make(write_whole(root))
    whole.setup()
    for part, splits in (("train", ("train", "val")), ("test", ("test",))):
        ours = sum(len(data.indices(s)) for s in splits)
        theirs = sum(len(whole.indices(s)) for s in splits)
        assert ours == theirs - 1, part
    seen = torch.cat([batch["index"] for batch in data.test_dataloader()])
    assert len(seen) == len(data.indices("test"))


def write_whole(root: Path) -> Path:
    other = root.with_name("whole")
    if not other.exists():
        write_class_folders(other)
    return other


def test_the_protocol_counts_and_names_them(damaged: tuple[Path, list[Path]]) -> None:
    root, bad = damaged
    with pytest.warns(UserWarning, match="leaves out"):
        protocol = make(root, on_bad_image="skip").protocol()
    assert protocol["bad_images"] == {"train": 1, "test": 1}
    assert protocol["bad_image_files"] == [path.relative_to(root).as_posix() for path in bad]
    assert make(write_whole(root), on_bad_image="skip").protocol()["bad_images"] == {
        "train": 0,
        "test": 0,
    }
    assert "bad_images" not in make(write_whole(root)).protocol()


def test_a_class_without_one_good_image_is_an_error(damaged: tuple[Path, list[Path]]) -> None:
    root, _ = damaged
    folder = sorted((root / "test").iterdir())[0]
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="leaves out"),
        pytest.raises(ValueError, match=f"{folder} holds no images that can be decoded"),
    ):
        make(root, on_bad_image="skip").setup()


def test_another_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.on_bad_image is 'ignore'; use error or skip"):
        make(tmp_path, on_bad_image="ignore")


def test_a_run_that_skips_has_the_counts_in_its_record(
    damaged: tuple[Path, list[Path]], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root, bad = damaged
    config = tiny_config()
    config["data"] = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {
            "root": str(root), "image_size": 32, "val_fraction": 0.25, "batch_size": 6,
            "num_workers": 0,
        },
    }  # fmt: skip
    write_config(here / "tiny.yaml", config)
    stopped = kora(capfd, "fit", "--config", "tiny.yaml")
    assert stopped.code != 0
    assert any(f"Cannot read the image {path}" in stopped.err for path in bad)
    done = kora(capfd, "fit", "--config", "tiny.yaml", "--data.on_bad_image", "skip")
    assert done.code == 0, done.err
    (folder,) = [path.parent for path in here.rglob("results.json")]
    assert results(folder)["protocol"]["bad_images"] == {"train": 1, "test": 1}
