"""Every config parses, says in its first line what it runs, and names commands that are true."""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from kora.cli.listing import config_claim, is_grid, is_search, is_sweep
from kora.grid.file import read_grid
from kora.runs.yaml_files import read_yaml
from kora.tune.file import read_tuning
from tests.support.cli import REPOSITORY, kora
from tests.support.commands import assert_accepted, kora_commands, parsed

Capture = pytest.CaptureFixture[str]

CONFIGS = sorted((REPOSITORY / "configs").rglob("*.yaml"))
NAMES = [str(path.relative_to(REPOSITORY)) for path in CONFIGS]
#: Words that stand for any name in a comment.
PLACEHOLDERS = ("NAME", "FILE", "STRATEGY")


def load(name: str) -> dict[str, Any]:
    config: dict[str, Any] = read_yaml(REPOSITORY / name)
    return config


def comments(name: str) -> list[str]:
    lines = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()
    return [line.strip()[1:].strip() for line in lines if line.strip().startswith("#")]


def labelled(name: str, label: str) -> list[str]:
    """What stands behind `label:` in the comments of a config."""
    head = f"{label}:"
    return [c.removeprefix(head).strip() for c in comments(name) if c.startswith(head)]


def is_complete(name: str) -> bool:
    return "class_path" in load(name).get("model", {})


SEARCHES = [name for name in NAMES if is_search(REPOSITORY / name)]
GRIDS = [name for name in NAMES if is_grid(REPOSITORY / name) and name not in SEARCHES]
OTHERS = [
    *GRIDS,
    *SEARCHES,
    *(name for name in NAMES if is_sweep(REPOSITORY / name)),
]  # tests/configs/test_sweeps.py
COMPLETE = [name for name in NAMES if is_complete(name) and name not in OTHERS]
FRAGMENTS = [name for name in NAMES if not is_complete(name) and name not in OTHERS]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # parsing sets it; monkeypatch puts it back


def test_configs_and_fragments_are_there() -> None:
    assert {"configs/quickstart.yaml", "configs/tinyimagenet_transfer.yaml"} <= set(COMPLETE)
    assert {"configs/adapters/kora.yaml", "configs/trainer/a100.yaml"} <= set(FRAGMENTS)


@pytest.mark.parametrize("name", COMPLETE)
def test_a_complete_config_parses_by_itself(name: str) -> None:
    options = parsed("fit", "--config", name).options
    assert options.experiment == load(name)["experiment"]
    assert options.model.class_path == load(name)["model"]["class_path"]


@pytest.mark.parametrize("name", FRAGMENTS)
def test_a_fragment_changes_what_the_command_in_its_comment_does(name: str) -> None:
    (use,) = labelled(name, "Use")  # and it is accepted
    with_it, without_it = (
        {**parsed(*words).options.as_dict(), "config": None}
        for words in (shlex.split(use)[1:], shlex.split(use.replace(f" --config {name}", ""))[1:])
    )
    # The base of these has their strategy.
    stems = ("lora", "matched/1200k/lora", "matched/nano_100k/lora", "matched/small_600k/lora")
    assert (with_it != without_it) == (
        name not in [f"configs/adapters/{stem}.yaml" for stem in stems]
    )


def test_every_experiment_has_a_name_of_its_own() -> None:
    names = [load(name)["experiment"] for name in COMPLETE]
    assert len(set(names)) == len(names)


def test_the_first_line_is_a_claim() -> None:
    for name in NAMES:
        first = (REPOSITORY / name).read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# "), name
        assert len(config_claim(REPOSITORY / name)) > 20, name


@pytest.mark.parametrize("name", GRIDS)
def test_a_grid_names_the_command_that_runs_it_and_keeps_its_runs_apart(name: str) -> None:
    (run,) = labelled(name, "Run")
    assert run.split()[:4] == ["kora", "grid", "--config", name]
    (compare,) = labelled(name, "Compare")
    grid = read_grid(Path(name))
    files = [word for word in grid.jobs()[0].args if word.endswith(".yaml")]
    named = [load(file)["experiment"] for file in files if "experiment" in load(file)]
    experiment = grid.options.get("experiment", named[-1])  # later files win
    assert any(fnmatch(f"runs/{experiment}", word) for word in compare.split())
    assert len(grid.seeds) >= 3, "one seed says nothing"


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_names_the_commands_that_run_it_and_its_best(name: str) -> None:
    (run,) = labelled(name, "Run")
    assert run.split()[:4] == ["kora", "tune", "--config", name]
    assert f"kora grid --config runs/tune_{Path(name).stem}/best.yaml" in "\n".join(comments(name))
    tuning = read_tuning(Path(name))
    assert len(tuning.final_seeds) >= 5
    assert not set(tuning.final_seeds) & set(tuning.grid.seeds)


@pytest.mark.parametrize(("label", "names"), [("Run", COMPLETE), ("Use", FRAGMENTS)])
def test_a_config_names_the_command_that_runs_or_uses_it(label: str, names: list[str]) -> None:
    for name in names:
        assert [f"--config {name}" in command for command in labelled(name, label)] == [True], name


@pytest.mark.parametrize("name", [*COMPLETE, *OTHERS])
def test_the_commands_of_a_comment_are_accepted(name: str, capfd: Capture) -> None:
    lines = [line for label in ("Run", "Compare") for line in labelled(name, label)]
    commands = kora_commands("\n".join(lines))
    assert len(commands) == len(lines)
    for command in commands:
        assert_accepted(command, capfd)


def test_the_command_to_compare_reads_the_runs_of_this_experiment() -> None:
    for name in COMPLETE:
        for command in labelled(name, "Compare"):
            if not command.startswith("kora paper "):  # which finds them below runs
                assert f"runs/{load(name)['experiment']}" in command.split(), name


def test_every_file_that_a_config_names_exists() -> None:
    named = re.compile(r"(?<![\w./-])(?:configs|docs|tests|kora|datamodules)/[\w./-]+")
    for name in NAMES:
        for found in named.findall((REPOSITORY / name).read_text(encoding="utf-8")):
            path = Path(found.rstrip("."))
            if path.stem in PLACEHOLDERS:
                path = path.parent
            assert path.exists(), f"{name}: {found}"
        source = load(name).get("source")
        assert source is None or source in COMPLETE, name


def test_no_config_names_a_path_of_one_machine() -> None:
    for name in NAMES:
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.:~/$}])/(?=\w)|~/|[A-Z]:\\", text), name


@pytest.mark.parametrize(
    ("name", "trainable", "total", "percent"),
    [
        # KoRA paper (2025), table 1 (1.45, 1.80, 2.18 %), to the digit as its notebook counts.
        ("table1_lora", 1_270_692, 87_838_348, 1.447),
        ("table1_kora_dcomp4", 1_590_224, 88_157_880, 1.804),
        ("table1_kora_dcomp8", 1_926_940, 88_494_596, 2.177),
    ],
)
def test_the_published_counts_come_out(
    name: str, trainable: int, total: int, percent: float, capfd: Capture
) -> None:
    file = f"configs/paper/as_published/{name}.yaml"
    outcome = kora(capfd, "params", "--config", file, "--json")
    counted = json.loads(outcome.out)
    assert counted["trainable"] == trainable
    assert counted["total"] == total
    assert counted["percent"] == percent
    assert f"{trainable:,}" in config_claim(Path(file))
