"""The saved runs that notebooks read are those of their grids, small, whole, and not shipped."""

from __future__ import annotations

import re
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from kora.grid.file import read_grid
from kora.runs.config import with_defaults
from kora.runs.results import find_runs, read_results
from kora.training.lightning_cli import parse
from tests.support.cli import REPOSITORY, kora

Capture = pytest.CaptureFixture[str]

FOLDER = REPOSITORY / "notebooks/runs"
#: Grids by the experiment of their runs.
GRIDS = {
    name: REPOSITORY / f"configs/grids/{name}.yaml"
    for name in ("notebooks", "notebook_composition")
}
RUNS = {name: find_runs([FOLDER / name]) for name in GRIDS}
of_each_grid = pytest.mark.parametrize("name", GRIDS)
KORA, SIDE = (FOLDER / f"notebooks/{name}/seed0/version_0" for name in ("KoRA", "KoRA-side"))


def kept() -> list[Path]:
    """The files below notebooks/runs that git keeps."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "."],
        cwd=FOLDER, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        pytest.skip("this is no checkout of git")
    return [FOLDER / name for name in done.stdout.split("\0") if name]


def essence(*args: str) -> dict[str, Any]:
    """What a run trains with, whatever machine it runs on; new options at their defaults."""
    config = with_defaults(parse(["fit", *args]).resolved())
    return {key: config[key] for key in ("seed_everything", "experiment", "model", "data")} | {
        key: config["trainer"][key] for key in ("max_epochs", "max_steps", "precision")
    }


def test_no_other_runs_are_kept() -> None:
    assert sorted(find_runs([FOLDER])) == sorted(run for runs in RUNS.values() for run in runs)


@of_each_grid
def test_they_are_the_runs_of_the_grid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # parsing sets it; monkeypatch puts it back
    grid = read_grid(GRIDS[name])
    runs = [run for run in RUNS[name] if run.parent.name == "seed0"]
    wanted = [essence(*job.args) for job in grid.jobs() if "--seed_everything=0" in job.args]
    found = [essence("--config", str(run / "config.yaml")) for run in runs]
    assert len(found) == len(wanted) == len(RUNS[name]) / len(grid.seeds)
    assert all(one in wanted for one in found)
    for run in runs:  # the other seeds have its config
        first, rest = (run / "config.yaml").read_text().split("\n", 1)
        assert first == "seed_everything: 0"
        for seed in grid.seeds:
            other = run.parents[1] / f"seed{seed}/version_0/config.yaml"
            assert other.read_text() == f"seed_everything: {seed}\n{rest}"


@of_each_grid
def test_their_grid_finds_them_finished(
    name: str, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    done = kora(capfd, "grid", "--config", GRIDS[name], "--set", f"runs_dir={FOLDER}", "--dry_run")
    assert done.code == 0, done.err
    count = len(RUNS[name])
    assert f"{count} runs, {count} of them finished" in done.out


@of_each_grid
def test_one_commit_made_them_all(name: str) -> None:
    (commit,) = {read_results(run).commit for run in RUNS[name]}
    assert commit is not None
    assert re.fullmatch("[0-9a-f]{40}", commit), "the code was changed when they were trained"


def test_they_are_small_whole_and_of_no_one_machine() -> None:
    files = kept()
    for name in GRIDS:
        of_one = [file for file in files if FOLDER / name in file.parents]
        assert sum(file.stat().st_size for file in of_one) < 3_000_000
    assert not [file for file in files if file.suffix in (".ckpt", ".png")]
    for run in find_runs([FOLDER]):
        for name in ("config.yaml", "splits.json", "metrics.csv", "test_outcomes.safetensors"):
            assert run / name in files
    for file in files:
        if file.suffix in (".json", ".yaml", ".md", ".csv"):
            assert not re.search(r"(?<![\w.])/(?:home|Users|root|tmp|mnt|work)\b", file.read_text())


def test_the_commands_read_them_from_any_folder(
    capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    for command in (
        ("compare", FOLDER),
        ("inspect", KORA, "--images", "8"),
        ("cka", SIDE, KORA, "--images", "16", "--batch_size", "8"),
    ):
        out = () if command[0] == "compare" else ("--out", tmp_path / command[0])
        done = kora(capfd, *command, *out)
        assert done.code == 0, done.err


def test_neither_wheel_nor_source_package_ships_them(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="it builds the packages; pip install hatchling")
    from hatchling.builders.sdist import SdistBuilder
    from hatchling.builders.wheel import WheelBuilder

    (sdist,) = SdistBuilder(str(REPOSITORY)).build(directory=str(tmp_path / "dist"))
    (wheel,) = WheelBuilder(str(REPOSITORY)).build(
        directory=str(tmp_path / "dist"), versions=["standard"]
    )
    with tarfile.open(sdist) as archive, zipfile.ZipFile(wheel) as installed:
        names = [*archive.getnames(), *installed.namelist()]
    assert any(name.endswith("notebooks/02_compare_adapters.ipynb") for name in names)
    assert not [name for name in names if "notebooks/runs" in name]
