"""kora grid: what runs, what is skipped, and what happens when a run fails."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kora.grid.options import picked
from tests.support.cli import REPOSITORY, kora, results, started, wait_for
from tests.support.grids import lines, runs_of_kora, write_grid

pytestmark = [pytest.mark.runs, pytest.mark.fits]

Capture = pytest.CaptureFixture[str]


def test_a_dry_run_lists_the_commands_and_starts_none(here: Path, capfd: Capture) -> None:
    name = write_grid(here, vary={"model.adapter.rank": [1, 2]}, seeds=[0, 1])
    outcome = kora(capfd, "grid", "--config", name, "--dry_run")
    assert outcome.code == 0, outcome.err
    assert "4 runs, 0 of them finished" in outcome.out
    listed = lines(outcome.out, "to run")
    assert len(listed) == 4
    assert listed[3].endswith(
        "kora fit --config tiny.yaml --model.adapter.rank=2 --seed_everything=1"
    )
    assert not (here / "runs").exists()


@pytest.mark.parametrize("launcher", [(), ("--launcher", "ray")])
def test_a_folder_of_runs_that_cannot_be_written_is_one_error_and_nothing_starts(
    launcher: tuple[str, ...], here: Path, capfd: Capture
) -> None:
    (here / "taken").touch()
    name = write_grid(here, vary={"model.adapter.rank": [1, 2]}, set={"runs_dir": "taken"})
    outcome = kora(capfd, "grid", "--config", name, *launcher)
    assert outcome.code == 1
    assert "runs_dir: taken cannot be written (File exists). Choose another" in outcome.err
    assert outcome.err.count("\n") == 1
    assert "run 1 of" not in outcome.out


def test_a_whole_name_picks_that_one_alone() -> None:
    names = {"5+lora": "5+lora", "5+lora_layers": "5+lora_layers"}
    assert picked(Path("g.yaml"), "run", names, ["5+lora"]) == {"5+lora"}
    assert picked(Path("g.yaml"), "run", names, ["+lora"]) == names.keys()
    seeds = {"lora, seed 1": "lora", "lora, seed 2": "lora", "lora_layers, seed 1": "lora_layers"}
    assert picked(Path("g.yaml"), "run", seeds, ["lora"]) == {"lora, seed 1", "lora, seed 2"}


def test_only_the_runs_with_a_text_in_their_name_are_run(here: Path, capfd: Capture) -> None:
    name = write_grid(here, vary={"model.adapter.rank": [1, 2]}, seeds=[0, 1])
    outcome = kora(capfd, "grid", "--config", name, "--dry_run", "--only", "rank=2, seed 1")
    assert outcome.code == 0, outcome.err
    assert "1 of 4 runs, 0 of them finished" in outcome.out
    (line,) = lines(outcome.out, "to run")
    assert line.endswith("--model.adapter.rank=2 --seed_everything=1")

    wrong = kora(capfd, "grid", "--config", name, "--dry_run", "--only", "rank=3")
    assert wrong.code == 2
    assert "--only rank=3: no run of grid.yaml has this in its name" in wrong.err
    assert "rank=1, seed 0, rank=1, seed 1" not in wrong.err, "seeds are not repeated"
    assert "rank=1, rank=2" in wrong.err
    wrong = kora(capfd, "grid", "--config", name, "--dry_run", "--only", "rank=2, seed 3")
    assert "There are: rank=2, seed 0, rank=2, seed 1." in wrong.err

    plain = write_grid(here, seeds=[0, 1])
    wrong = kora(capfd, "grid", "--config", plain, "--dry_run", "--only", "seed 2")
    assert "There are: seed 0, seed 1." in wrong.err


def test_finished_runs_are_known_by_their_config(here: Path, capfd: Capture) -> None:
    for seed, more in (("0", ()), ("1", ("--trainer.max_epochs", "2"))):
        args = ("--config", "tiny.yaml", "--model.adapter.rank", "1", "--seed_everything", seed)
        assert kora(capfd, "fit", *args, *more).code == 0
    name = write_grid(here, vary={"model.adapter.rank": [1, 2]}, seeds=[0, 1])
    out = kora(capfd, "grid", "--config", name, "--dry_run").out
    assert "4 runs, 1 of them finished" in out
    (found,) = lines(out, "finished")
    assert found.endswith("rank=1, seed 0: runs/tiny/LoRA/seed0/version_0")

    # Where a run runs does not matter, and how long it trains does.
    longer = ("--dry_run", "--set", "trainer.max_epochs=2", "trainer.enable_progress_bar=true")
    (found,) = lines(kora(capfd, "grid", "--config", name, *longer).out, "finished")
    assert found.endswith("rank=1, seed 1: runs/tiny/LoRA/seed1/version_0")

    (here / "runs/tiny/LoRA/seed0/version_0/results.json").write_text("{")
    assert not lines(kora(capfd, "grid", "--config", name, "--dry_run").out, "finished")


def test_a_grid_reads_numbers_as_the_runs_do() -> None:
    """Although it imports rich first, which has float before int; see `whole_numbers_first`."""
    code = (
        "import kora.grid.command; "
        "from kora.training.lightning_cli import parse; "
        "c = parse(['fit', '--config', 'configs/quickstart.yaml', "
        "'--trainer.limit_train_batches=8']).resolved(); "
        "print(repr(c['trainer']['limit_train_batches']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "8"


def test_a_test_of_a_checkpoint_is_no_finished_fit(here: Path, capfd: Capture) -> None:
    assert kora(capfd, "fit", "--config", "tiny.yaml").code == 0
    run = here / "runs/tiny/LoRA/seed0/version_0"
    best = run / "checkpoints/best.ckpt"
    assert kora(capfd, "test", "--config", "tiny.yaml", "--ckpt_path", best).code == 0
    name = write_grid(here)
    (found,) = lines(kora(capfd, "grid", "--config", name, "--dry_run").out, "finished")
    assert found.endswith("version_0")
    (run / "results.json").unlink()
    assert not lines(kora(capfd, "grid", "--config", name, "--dry_run").out, "finished")


def test_a_finished_grid_starts_nothing_and_compares(here: Path, capfd: Capture) -> None:
    assert kora(capfd, "fit", "--config", "tiny.yaml").code == 0
    outcome = kora(capfd, "grid", "--config", write_grid(here))
    assert outcome.code == 0, outcome.err
    assert "0 runs done, 1 were finished before, 0 failed" in outcome.out
    assert "LoRA" in outcome.out
    assert "test/accuracy" in outcome.out
    assert [p.name for p in (here / "runs/tiny/LoRA/seed0").iterdir()] == ["version_0"]


def test_arguments_of_a_strategy_are_told_apart(here: Path, capfd: Capture) -> None:
    for rank in ("1", "2"):
        args = ("--config", "tiny.yaml", "--model.adapter.rank", rank)
        assert kora(capfd, "fit", *args).code == 0
    outcome = kora(capfd, "grid", "--config", write_grid(here, vary={"model.adapter.rank": [1, 2]}))
    assert {"LoRA (rank=1)", "LoRA (rank=2)"} <= set(re.findall(r"LoRA \(.*?\)", outcome.out))


def test_the_comparison_goes_by_what_varied(here: Path, capfd: Capture) -> None:
    for epochs in ("1", "2"):
        args = ("--config", "tiny.yaml", "--trainer.max_epochs", epochs)
        assert kora(capfd, "fit", *args).code == 0
    outcome = kora(capfd, "grid", "--config", write_grid(here, vary={"trainer.max_epochs": [1, 2]}))
    assert outcome.code == 0, outcome.err
    assert "2 were finished before" in outcome.out
    assert {"max_epochs=1", "max_epochs=2"} <= set(outcome.out.split())
    for epochs in (1, 2):  # as the best settings of a search stand in files
        (here / f"{epochs}.yaml").write_text(f"trainer: {{max_epochs: {epochs}}}")
    name = write_grid(here, vary={"config": ["1.yaml", "2.yaml"]})
    assert "max_epochs=2" in kora(capfd, "grid", "--config", name).out.split()


def test_a_comparison_that_is_refused_is_said_and_is_no_failure(here: Path, capfd: Capture) -> None:
    for seed in ("0", "1"):  # random weights: another backbone with every seed
        assert kora(capfd, "fit", "--config", "tiny.yaml", "--seed_everything", seed).code == 0
    outcome = kora(capfd, "grid", "--config", write_grid(here, seeds=[0, 1]))
    assert outcome.code == 0, outcome.err
    assert "no comparison: " in outcome.out
    assert "backbone.sha256" in outcome.out


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ({"vary": {"model.adapter.rnk": [1]}}, ["Did you mean 'rank'?", "'rnk=1, seed 0'"]),
        ({"set": {"trainer.max_epoch": 1}}, ["Did you mean 'trainer.max_epochs'?", "kora fit"]),
        ({"vary": {"model.adapter.rank": [2, "2"]}}, ["has 2 twice"]),
        ({"vary": {"model.adapter": ["LoRA", "kora.adapters.LoRA"]}}, ["are the same run"]),
        ({"seeds": [2**32]}, ["grid.yaml: seeds has 4294967296"]),
        ({"base": "nowhere.yaml"}, ["grid.yaml: base names 'nowhere.yaml'"]),
    ],
)
def test_a_grid_with_a_mistake_starts_nothing(
    here: Path, capfd: Capture, content: dict[str, Any], fragments: list[str]
) -> None:
    outcome = kora(capfd, "grid", "--config", write_grid(here, **content))
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    for fragment in fragments:
        assert fragment in outcome.err
    assert not (here / "runs").exists()


def test_the_grid_needs_a_file(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "grid")
    assert outcome.code == 2
    assert "usage: kora grid" in outcome.err
    assert "nowhere.yaml" in kora(capfd, "grid", "--config", "nowhere.yaml").err


@pytest.mark.slow
def test_the_grid_goes_on_past_a_failed_run_and_ends_with_its_name(
    here: Path, capfd: Capture
) -> None:
    name = write_grid(here, vary={"model.adapter.rank": [1000, 1]}, set={"experiment": "mine"})
    outcome = kora(capfd, "grid", "--config", name)
    assert outcome.code == 1
    assert "run 1 of 2: rank=1000, seed 0 (time left: not known yet)" in outcome.out
    assert "run 2 of 2: rank=1, seed 0" in outcome.out
    assert "1 runs done, 0 were finished before, 1 failed" in outcome.out
    assert "1 to 128" in outcome.err, "the run's own message"
    assert "1 of 2 runs failed" in outcome.err
    assert "rank=1000, seed 0 (exit code 2): kora fit --config tiny.yaml" in outcome.err
    assert results(here / "runs/mine/LoRA/seed0/version_0")["settings"]["adapter"]["init_args"][
        "rank"
    ] == 1  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_grid_stops_its_run_and_goes_on_later(
    here: Path, capfd: Capture, number: signal.Signals
) -> None:
    name = write_grid(here, set={"trainer.max_epochs": 100_000, "trainer.max_time": "00:00:10:00"})
    metrics = here / "runs/tiny/LoRA/seed0/version_0/metrics.csv"
    with started("grid", "--config", name, log=here / "out.txt") as process:
        wait_for(metrics, process)
        assert metrics.exists(), (here / "out.txt").read_text()
        if number is signal.SIGINT:
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        else:
            process.terminate()
        assert process.wait(timeout=60) == 128 + number
    assert not runs_of_kora(here)
    text = (here / "out.txt").read_text()
    assert "resume the runs" in text
    assert "Traceback" not in text
    out = kora(capfd, "grid", "--config", name, "--dry_run").out
    assert "1 runs, 0 of them finished (1 to resume)" in out
    (line,) = lines(out, "to resume")
    assert line.endswith("--ckpt_path runs/tiny/LoRA/seed0/version_0/checkpoints/last.ckpt")
