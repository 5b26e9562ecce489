"""kora as pip installs it, in a folder of somebody's own: no clone, and no configs beside it."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, results, tiny_config, write_config
from tests.support.kept import kept
from tests.support.pictures import write_pictures

pytestmark = pytest.mark.slow

Kora = Callable[..., str]


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The programs of an installed wheel."""
    pytest.importorskip("hatchling", reason="it builds the packages; pip install hatchling")
    from hatchling.builders.wheel import WheelBuilder

    place = tmp_path_factory.mktemp("pip")
    (wheel,) = WheelBuilder(str(REPOSITORY)).build(directory=str(place), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place / "site")
    with kept(place / "site", place / "tools"):
        yield place / "tools"


@pytest.fixture
def kora(tools: Path, tmp_path: Path) -> Kora:
    """Run `kora WORDS` in a folder that has a `kora` and a `datamodules` of its own."""
    for name in ("kora", "datamodules"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not this one')\n")

    def run(*words: str) -> str:
        done = subprocess.run(
            [tools / "kora", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_our_configs_are_in_the_package_and_have_names(kora: Kora, tmp_path: Path) -> None:
    told = kora("params", "--config", "quickstart", "--config", "adapters/kora_side")
    assert "parameters train" in told
    assert "configs/grids/photos.yaml" in kora("list", "configs")
    assert "configs in mine. Try: kora fit --config mine/quickstart.yaml" in kora("init", "mine")
    assert (tmp_path / "mine/adapters/lora.yaml").is_file()


def test_a_run_its_source_and_a_grid_are_found_beside_the_files_that_name_them(
    kora: Kora, tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    write_config(tmp_path / "files/source.yaml", tiny_config(experiment="source"))
    write_config(tmp_path / "files/tiny.yaml", tiny_config(source="source.yaml"))
    (tmp_path / "files/grid.yaml").write_text(
        "base: tiny.yaml\nvary: {config: [adapters/linear_probe, adapters/bitfit]}\n"
    )
    told = kora("grid", "--config", "files/grid.yaml")
    assert "2 runs done, 0 were finished before, 0 failed" in told
    for experiment, strategy in (("source", "BitFit"), ("tiny", "BitFit"), ("tiny", "LinearProbe")):
        assert results(tmp_path / f"runs/{experiment}/{strategy}/seed0/version_0")["finished"]
    assert "2 were finished before" in kora("grid", "--config", "files/grid.yaml")


def test_the_quickstart_and_a_search_run(kora: Kora, tmp_path: Path) -> None:
    few = ("--source=null", "--data.train_images=1200", "--trainer.limit_val_batches=1")
    kora("fit", "--config", "quickstart", "--config", "adapters/linear_probe", *few)
    assert results(tmp_path / "runs/quickstart/LinearProbe/seed0/version_0")["finished"]
    pytest.importorskip("optuna")
    write_config(tmp_path / "tiny.yaml", tiny_config())
    (tmp_path / "search.yaml").write_text(
        "base: tiny.yaml\nvary: {config: [adapters/linear_probe]}\nseeds: [0]\n"
        "tune: {trials: 1, space: {model.head_lr: {low: 1.0e-3, high: 1.0e-2, log: true}}}\n"
    )
    assert "wrote runs/tune_search/best.yaml" in kora("tune", "--config", "search.yaml")


def test_a_folder_of_pictures_becomes_a_model(kora: Kora, tmp_path: Path) -> None:
    write_pictures(tmp_path / "photos", 5, classes=2)
    told = kora("adapt", "photos", "--backbone", "vit_nano", "--minutes", "0.1")
    assert "tells the 2 classes apart in" in told
    assert (tmp_path / "runs/adapt_photos/index.html").is_file()
