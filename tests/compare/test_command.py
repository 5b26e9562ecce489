"""`kora compare` over runs that really ran, were really killed, and do not go together."""

from __future__ import annotations

import json
import os
import shutil
import signal
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest

from kora.cli import main
from kora.runs.outcomes import read_outcomes
from tests.support.cli import kora, results, started, tiny_config, wait_for, write_config
from tests.support.comparisons import FILES

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.slow
RUNS = Path("runs/tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KoRA and a linear probe with two seeds each, on the backbone that comes with the package."""
    config = tiny_config()
    config["model"]["init_args"]["backbone"].pop("weights")
    folder = tmp_path_factory.mktemp("trained")
    write_config(folder / "tiny.yaml", config)
    with chdir(folder):
        for strategy in ("LinearProbe", "KoRA"):
            for seed in ("0", "1"):
                fit(strategy, seed)
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with these."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fit(strategy: str, seed: str, *options: str) -> None:
    main([
        "fit", "--config", "tiny.yaml", "--seed_everything", seed, "--model.adapter", strategy,
        *options,
    ])  # fmt: skip


def compare(capfd: Capture, *args: str) -> str:
    """What the command prints, each run of blanks as one."""
    outcome = kora(capfd, "compare", *args)
    assert outcome.code == 0, outcome.err
    return " ".join(outcome.out.split())


def test_real_runs_leave_outcomes_that_are_their_accuracy(runs: Path, capfd: Capture) -> None:
    folder = RUNS / "KoRA/seed0/version_0"
    kept = read_outcomes(folder)
    assert kept is not None
    assert kept.index.tolist() == list(range(24))
    right = kept.values("test/accuracy")
    assert right is not None
    assert results(folder)["metrics"]["test/accuracy"] == pytest.approx(right.mean())
    confusion = np.bincount(kept.columns["label"], minlength=12)
    assert confusion.tolist() == [2] * 12
    text = compare(capfd, "runs", "--out", "out")
    assert "minus LinearProbe" in text
    assert "bootstrap 95 %" in text
    assert "24 test images" in text
    answers = {"classes.csv", "differing_images.csv"}
    assert {path.name for path in Path("out").iterdir()} == set(FILES) | answers
    assert "told apart" in text or "is ahead of" in text or "is behind" in text
    assert "peak memory" in text


def test_what_is_no_usable_run_gets_a_word_each_and_the_rest_is_compared(
    runs: Path, capfd: Capture
) -> None:
    # Two runs with one seed, and one on other data.
    fit("KoRA", "1")
    fit("KoRA", "2", "--data.train_images", "36")
    # A run that was killed while it trained, and leaves no results.json.
    with started(
        "fit", "--config", "tiny.yaml", "--seed_everything", "5", "--trainer.max_epochs", "500",
        log=runs / "log",
    ) as process:  # fmt: skip
        killed = RUNS / "LoRA/seed5/version_0"
        wait_for(killed / "metrics.csv", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # A record of another schema version, and a folder that is no run.
    later = RUNS / "KoRA/seed7/version_0"
    later.mkdir(parents=True)
    record = results(RUNS / "KoRA/seed0/version_0")
    (later / "results.json").write_text(json.dumps({**record, "schema": 2, "record_sha256": None}))
    Path("photos").mkdir()
    text = compare(capfd, "runs", "photos", "nowhere")
    for words in (
        "KoRA, seed 1: 2 versions; runs/tiny/KoRA/seed1/version_1 is the newest",
        "KoRA/seed2/version_0: left out, unlike the other 4 runs: protocol.sizes.train is 24",
        f"{killed}: has no results.json (unfinished); left out.",
        f"{later}/results.json: schema version is 2, and this KoRA",
        "photos: there is no run here",
        "nowhere: no such folder",
    ):
        assert words in text
    assert "KoRA 2 " in text
    assert "LinearProbe 2 " in text
    alone = kora(capfd, "compare", str(killed))
    assert alone.code == 2
    assert "a run without results.json: it is still running, or was stopped" in alone.err


def test_groups_are_the_values_of_a_setting_that_is_named(runs: Path, capfd: Capture) -> None:
    fit("KoRA", "0", "--model.adapter.d_comp", "16")
    text = compare(capfd, "runs", "--by", "model.adapter.d_comp", "--reference", "LinearProbe")
    assert "KoRA, d_comp=16" in text
    refused = kora(capfd, "compare", "runs", "--by", "d_compp")
    assert refused.code == 2
    assert "Did you mean model.adapter.d_comp?" in refused.err
    refused = kora(capfd, "compare", "runs", "--reference", "LoRA")
    assert refused.code == 2
    assert "'LoRA' is none of the groups" in refused.err
