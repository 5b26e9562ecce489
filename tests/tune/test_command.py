"""kora tune: equal trials, by validation alone, that survive what stops them."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.adapters.checkpoint_files import read_checkpoint
from kora.grid.file import read_grid
from kora.training.lightning_cli import parse
from tests.support.cli import kora, results, started, tiny_config, write_config
from tests.support.cluster import TwoNodes
from tests.support.forks import Process
from tests.support.grids import LONG, runs_of_kora
from tests.support.slurm import slurm

__all__ = ["slurm"]

pytestmark = [pytest.mark.runs, pytest.mark.fits]

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'kora-vit[tune]'")

Capture = pytest.CaptureFixture[str]

LR = {"model.optimizer.lr": {"low": "1e-4", "high": "1e-1", "log": True}}
SPACE = {**LR, "model.adapter.dropout": {"choices": [0.0, 0.1]}}
TUNE = {"trials": 2, "space": SPACE, "only_where": {"model.adapter.dropout": ["lora.yaml"]}}


@pytest.fixture
def here(here: Path) -> Path:
    """Two strategies on tiny data, and every run fails that prepares a test."""
    config = tiny_config()
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}
    config["model"]["init_args"]["optimizer"] = optimizer
    config["trainer"]["callbacks"] = [{"class_path": "tests.support.slowly.NoTest"}]
    write_config(here / "tiny.yaml", config)
    for name, rank in (("lora", {"rank": 2}), ("bitfit", {})):
        adapter = {"class_path": f"kora.adapters.{'LoRA' if rank else 'BitFit'}"}
        adapter |= {"init_args": rank} if rank else {}
        fragment = {"model": {"init_args": {"adapter": adapter}}}
        write_config(here / f"{name}.yaml", fragment)
    return here


def write_search(folder: Path, tune: dict[str, Any] | None = None, **content: Any) -> str:
    grid = {"base": "tiny.yaml", "vary": {"config": ["lora.yaml", "bitfit.yaml"]}, **content}
    path = folder / "search.yaml"
    path.write_text(yaml.safe_dump({**grid, "tune": {**TUNE, **(tune or {})}}, sort_keys=False))
    return path.name


def only_lora(folder: Path, tune: dict[str, Any], **content: Any) -> str:
    """A search of LoRA's rate alone."""
    given = {"space": LR, "only_where": {}, **tune}
    return write_search(folder, given, vary={"config": ["lora.yaml"]}, **content)


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs/tune_search/record.json").read_text())
    return {one["name"]: one for one in found["combinations"]}


def test_a_dry_run_shows_the_trials_of_each_and_starts_none(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "tune", "--config", write_search(here), "--dry_run", "--trials", "7")
    assert outcome.code == 0, outcome.err
    assert "2 combinations, 7 trials each" in outcome.out
    assert "lora: 7 trials by best_val/accuracy (maximum)" in outcome.out
    assert "model.optimizer.lr 0.0001 to 0.1 (log)" in outcome.out
    assert outcome.out.count("model.adapter.dropout of 0.0, 0.1") == 1, "BitFit has none"
    assert "--leave_out_test=true" in outcome.out
    assert "with seeds 1, 2, 3, 4, 5" in outcome.out
    assert not (here / "runs").exists()


def found_in(best: Path) -> list[str]:
    """The combinations of a grid of the best."""
    return [Path(files[-1]).stem for files in yaml.safe_load(best.read_text())["vary"]["config"]]


@pytest.mark.slow
def test_only_some_combinations_are_searched_and_the_next_ones_join_them(
    here: Path, capfd: Capture
) -> None:
    name = write_search(here, {"trials": 1})
    dry = kora(capfd, "tune", "--config", name, "--only", "lora", "--dry_run")
    assert "1 of 2 combinations, 1 trials each" in dry.out
    assert "lora: 1 trials" in dry.out
    assert "bitfit" not in dry.out

    first = kora(capfd, "tune", "--config", name, "--only", "lora")
    assert first.code == 0, first.err
    assert "Trials: 1 in lora; 0 in bitfit" in first.out
    best = here / "runs/tune_search/best.yaml"
    assert "# Missing:  bitfit, of which no trial finished" in best.read_text()
    assert found_in(best) == ["lora"]

    second = kora(capfd, "tune", "--config", name, "--only", "bitfit")
    assert second.code == 0, second.err
    assert found_in(best) == ["lora", "bitfit"], "what was found before stays"


def test_a_search_of_nothing_names_what_there_is(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "tune", "--config", write_search(here), "--only", "dora", "lora")
    assert outcome.code == 2
    assert "--only dora: no combination of search.yaml has this in its name" in outcome.err
    assert "lora, bitfit" in outcome.err


def mistakes() -> list[tuple[dict[str, Any], dict[str, Any], str]]:
    rate = LR["model.optimizer.lr"]
    return [
        ({"trials": 0}, {}, "tune.trials is 0; expected a whole number from 1 up"),
        ({"space": {}}, {}, "tune.space is empty"),
        ({"space": {"model.optimizer.lrr": rate}, "only_where": {}}, {}, "Did you mean"),
        ({"sampler": "cmaes"}, {}, "expected one of tpe, gp, random, grid"),
        ({"sampler": "grid"}, {}, "is a range, and sampler: grid tries lists"),
        ({"space": {"model.optimizer.lr": {"low": 1, "high": 0.1}}, "only_where": {}}, {},
         "goes from 1 to 0.1"),
        ({"only_where": {key: ["lora.yaml"] for key in SPACE}}, {},
         "'bitfit' has nothing to search"),
        ({"only_where": {"model.adapter.dropout": ["dora.yaml"]}}, {}, "is no file under 'vary'"),
        ({"only_where": {}}, {}, "the options of 'bitfit' are not accepted"),
        ({"final_seeds": [0, 1]}, {}, "0 is a seed of the trials"),
        ({"final_seeds": [2**40]}, {}, "tune.final_seeds is 1099511627776; expected a whole"),
        ({"final_seeds": 3}, {"seeds": [2**32 - 3]}, "expected a whole number from 1 to 2."),
        ({"trails": 3}, {}, "Did you mean 'trials'?"),
        ({}, {"set": {"data.val_images": 0}}, "has no validation split"),
        ({}, {"set": {"model.optimizer.lr": 0.1}}, "is under tune.space and under 'set' too"),
        ({}, {"set": {"model.init_args.optimizer.init_args.lr": 0.1}}, "and under 'set' too"),
    ]  # fmt: skip


@pytest.mark.parametrize(("tune", "content", "message"), mistakes(), ids=lambda v: str(v)[:30])
def test_a_search_with_a_mistake_starts_nothing(
    here: Path, capfd: Capture, tune: dict[str, Any], content: dict[str, Any], message: str
) -> None:
    outcome = kora(capfd, "tune", "--config", write_search(here, tune, **content))
    assert outcome.code == 2
    assert message in outcome.err
    assert "Traceback" not in outcome.err
    assert not (here / "runs").exists()


def test_a_file_of_studies_that_computes_by_itself_is_refused(here: Path, capfd: Capture) -> None:
    (here / "runs/tune_search").mkdir(parents=True)
    with closing(sqlite3.connect(here / "runs/tune_search/studies.sqlite3")) as base:
        base.execute("CREATE VIEW studies AS SELECT 1")
    outcome = kora(capfd, "tune", "--config", write_search(here))
    assert outcome.code == 1
    assert "studies.sqlite3: it holds triggers or views" in outcome.err


def test_a_grid_is_no_search_and_a_search_no_grid(here: Path, capfd: Capture) -> None:
    (here / "grid.yaml").write_text("base: tiny.yaml\n")
    assert "run it as it is with kora grid" in kora(capfd, "tune", "-c", "grid.yaml").err
    outcome = kora(capfd, "grid", "--config", write_search(here))
    assert outcome.code == 2
    assert "kora tune --config search.yaml" in outcome.err


def test_without_optuna_it_says_what_to_install(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    outcome = kora(capfd, "tune", "--config", write_search(here))
    assert outcome.code == 2
    assert "pip install 'kora-vit[tune]'" in outcome.err


@pytest.mark.slow
def test_equal_trials_lead_to_a_grid_of_the_best_with_fresh_seeds(
    here: Path, capfd: Capture
) -> None:
    name = write_search(here, {"final_seeds": 3})
    outcome = kora(capfd, "tune", "--config", name, "--jobs", "2")
    assert outcome.code == 0, outcome.err
    assert "run 4 of 4" in outcome.out
    assert "time left: about" in outcome.out
    trials = record(here)
    assert [len(one["trials"]) for one in trials.values()] == [2, 2]
    assert list(trials["lora"]["space"]) == list(SPACE)
    assert list(trials["bitfit"]["space"]) == list(LR)
    rates = [[t["values"]["model.optimizer.lr"] for t in one["trials"]] for one in trials.values()]
    assert sorted(rates[0]) == sorted(rates[1]), "the same seed draws the same for each"
    for one in trials.values():
        for trial in one["trials"]:
            (folder,) = trial["folders"]
            assert results(here / folder)["metrics"] == {"best_val/accuracy": trial["value"]}
            assert folder.startswith("runs/tiny_tune/")
    text = (here / "runs/tune_search/table.md").read_text()
    assert "| lora | 2 | 0 | 2 |" in text
    assert "Trials: 2 in all 2." in text
    assert "never tested" in text
    assert (here / "runs/tune_search/trials.png").stat().st_size > 10_000

    grid = read_grid(Path("runs/tune_search/best.yaml"))
    assert grid.seeds == (1, 2, 3)
    jobs = {job.args[3]: job for job in grid.jobs() if job.args[-1].endswith("=1")}
    for key, one in trials.items():
        best = max(one["trials"], key=lambda trial: trial["value"])
        config = parse(["fit", *jobs[f"{key}.yaml"].args]).resolved()
        wanted = ["fit", "-c", "tiny.yaml", "-c", f"{key}.yaml", "--seed_everything=1"]
        wanted += [f"--{option}={json.dumps(value)}" for option, value in best["values"].items()]
        assert config == parse(wanted).resolved()

    lost = here / next(iter(trials.values()))["trials"][0]["folders"][0] / "results.json"
    lost.write_text("{")  # its score is in the study
    again = kora(capfd, "tune", "--config", name)
    assert again.code == 0, again.err
    assert "4 trials, 4 of them finished" in again.out
    assert "run 1" not in again.out
    fewer = kora(capfd, "tune", "--config", name, "--trials", "1", "--only", "lora")
    assert "lora: 2 trials are finished, and the first 1 count" in fewer.out


@pytest.mark.slow
def test_a_trial_of_several_seeds_counts_their_mean(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "tune", "--config", only_lora(here, {"trials": 1}, seeds=[0, 3]))
    assert outcome.code == 0, outcome.err
    (trial,) = record(here)["lora"]["trials"]
    values = [results(here / f)["metrics"]["best_val/accuracy"] for f in trial["folders"]]
    assert len(values) == 2
    assert trial["value"] == pytest.approx(sum(values) / 2)
    assert read_grid(here / "runs/tune_search/best.yaml").seeds == (4, 5, 6, 7, 8)


@pytest.mark.slow
def test_a_failed_trial_counts_and_is_named_and_a_mistake_is_told_once(
    here: Path, capfd: Capture
) -> None:
    space = {"model.optimizer.weight_decay": {"choices": [0.0, 0.1]},
             "model.optimizer.lr": {"choices": [0.001, 1e30]}}  # fmt: skip
    name = only_lora(here, {"sampler": "grid", "trials": 9, "space": space})
    outcome = kora(capfd, "tune", "--config", name, "--jobs", "2")
    assert outcome.code == 0, outcome.err
    trials = record(here)["lora"]["trials"]
    assert len(trials) == 4, "a grid ends with its points"
    assert len({tuple(trial["values"].values()) for trial in trials}) == 4
    failed = [trial for trial in trials if trial["state"] == "failed"]
    assert {trial["values"]["model.optimizer.lr"] for trial in failed} == {1e30}
    assert "the loss is nan" in failed[0]["why"], "the run's own reason"
    assert all(trial["seconds"] > 0 for trial in trials), "a search took these too"
    assert f"lora, trial {failed[0]['number']} (" in outcome.out

    rank = {"model.adapter.rank": {"choices": [1000, 2000]}}
    outcome = kora(capfd, "tune", "--config", only_lora(here, {"trials": 3, "space": rank}))
    assert outcome.code == 1
    assert outcome.err.count("1 to 128") == 1
    assert "tuned equally" in outcome.err
    assert "run 2 of" not in outcome.out


def the_checkpoint(here: Path, process: Process) -> Path:
    """Of the trial that runs, once it is there."""
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        found = list(here.glob("runs/tiny_tune/*/seed*/version_*/checkpoints/last.ckpt"))
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError((here / "out.txt").read_text())


def goes_on_here(here: Path, capfd: Capture, name: str) -> str:
    """A search of two trials that ended within the first; what it says."""
    (here / "hurry").touch()
    outcome = kora(capfd, "tune", "--config", name)
    assert outcome.code == 0, outcome.err
    assert "2 trials, 0 of them finished" in outcome.out
    trials = record(here)["lora"]["trials"]
    assert [trial["state"] for trial in trials] == ["done", "done"]
    # The first of them is that of the first trial, which was not begun again.
    assert len(list(here.glob("runs/tiny_tune/LoRA/seed0/version_*"))) == 2
    return outcome.out


def test_trials_that_the_queue_refuses_stay_open_and_no_more_are_submitted(
    here: Path, capfd: Capture, slurm: Path
) -> None:
    name = only_lora(here, {"trials": 3})
    (slurm / "refuse").write_text("Batch job submission failed: Invalid partition name.")
    outcome = kora(capfd, "tune", "--config", name, "--launcher", "slurm", "--jobs", "1")
    assert outcome.code == 1
    assert "trials were not run: sbatch refused" in outcome.err
    assert "Invalid partition name; repeat" not in outcome.err
    assert "Failed trials" not in outcome.out
    assert outcome.out.count("sbatch refused") == 1
    assert {trial["state"] for trial in record(here)["lora"]["trials"]} == {"open"}


@pytest.mark.slow
def test_a_killed_search_goes_on_with_the_same_trial(here: Path, capfd: Capture) -> None:
    name = only_lora(here, {"trials": 2}, set=LONG)
    with started("tune", "--config", name, log=here / "out.txt") as process:
        the_checkpoint(here, process)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert "resumes from" in goes_on_here(here, capfd, name)


@pytest.mark.slow
def test_a_killed_trial_is_repeated_and_two_searches_at_once_are_refused(
    here: Path, capfd: Capture
) -> None:
    name = only_lora(here, {"trials": 1}, set=LONG)
    with started("tune", "--config", name, log=here / "out.txt") as process:
        the_checkpoint(here, process)
        second = kora(capfd, "tune", "--config", name)
        assert second.code == 1
        assert "another kora tune is at work" in second.err
        (here / "hurry").touch()
        (run,) = runs_of_kora(here)
        os.kill(run, signal.SIGKILL)
        assert process.wait(timeout=240) == 0, (here / "out.txt").read_text()
    text = (here / "out.txt").read_text()
    assert re.search(r"killed by SIGKILL: lora, trial 0", text)
    assert "again: lora, trial 0" in text
    (trial,) = record(here)["lora"]["trials"]
    assert trial["state"] == "done"


@pytest.mark.slow
def test_lost_studies_find_their_runs_again_and_damaged_ones_are_named(
    here: Path, capfd: Capture
) -> None:
    name = only_lora(here, {"trials": 2})
    assert kora(capfd, "tune", "--config", name).code == 0
    before = record(here)["lora"]["trials"]
    studies = here / "runs/tune_search/studies.sqlite3"
    studies.write_bytes(b"no database" * 1000)
    outcome = kora(capfd, "tune", "--config", name)
    assert outcome.code == 1
    assert "studies.sqlite3: cannot be read" in outcome.err
    assert "Traceback" not in outcome.err
    studies.unlink()
    assert kora(capfd, "tune", "--config", name).code == 0
    assert record(here)["lora"]["trials"] == before
    assert len(list(here.glob("runs/tiny_tune/LoRA/seed0/version_*"))) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_search_on_a_cluster_is_stopped_there_goes_on_here_and_finds_what_one_from_here_finds(
    here: Path, capfd: Capture, cluster: TwoNodes
) -> None:
    name = only_lora(here, {"trials": 2}, set=LONG)
    on_ray = ("--launcher", "ray", "--ray_address", cluster.address)
    out = here / "out.txt"
    with started("tune", "--config", name, *on_ray, log=out) as process:
        last = the_checkpoint(here, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=150) == 130, out.read_text()
    assert not runs_of_kora(here)
    text = out.read_text()
    assert re.search(r"lora, trial 0 on .*? \(\w+\)", text)
    assert "Traceback" not in text
    assert read_checkpoint(last)["global_step"] > 0
    goes_on_here(here, capfd, name)
    assert kora(capfd, "tune", "--config", name, "--set", "runs_dir=elsewhere").code == 0

    def found(runs: str) -> list[dict[str, str]]:
        with (here / runs / "tune_search/trials.csv").open(encoding="utf-8") as file:
            return [{**row, "seconds": ""} for row in csv.DictReader(file)]

    assert found("runs") == found("elsewhere")
