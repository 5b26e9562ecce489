"""A run on two processes: the death of one ends the other, and predictions come from both."""

from __future__ import annotations

import csv
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.armed import run
from tests.support.cli import started, tiny_config, wait_for, write_config

pytestmark = pytest.mark.slow
RUN = Path("runs/tiny/LoRA/seed0/version_0")
TWO = ("--trainer.devices", "2", "--trainer.strategy", "ddp")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.parametrize("dies", [0, 1])
def test_the_death_of_one_process_ends_the_other_within_seconds(tmp_path: Path, dies: int) -> None:
    config = tiny_config()
    config["trainer"] |= {"max_epochs": 100_000, "log_every_n_steps": 1}
    write_config(tmp_path / "tiny.yaml", config)
    log = tmp_path / "log"
    with started("fit", "--config", "tiny.yaml", *TWO, log=log, folder=tmp_path) as first:
        wait_for(tmp_path / RUN / "checkpoints/last.ckpt", first)  # an epoch is done
        assert first.poll() is None, log.read_text()
        ranks = [first.pid, *children(first.pid)]
        assert len(ranks) == 2
        os.kill(ranks[dies], signal.SIGKILL)
        killed = time.monotonic()
        try:
            while alive(ranks[1 - dies]):
                assert time.monotonic() < killed + 30
                time.sleep(0.05)
                first.poll()
        finally:
            if alive(ranks[1]):
                os.kill(ranks[1], signal.SIGKILL)
        assert first.wait(timeout=10) != 0
        assert time.monotonic() < killed + 15


def test_predictions_of_both_processes_are_in_one_file_in_order(tmp_path: Path) -> None:
    config = tiny_config()
    config["data"]["init_args"]["test_images"] = 25  # uneven: 13 and 12
    write_config(tmp_path / "tiny.yaml", config)
    code, said = run(tmp_path, "fit", "--config", "tiny.yaml", *TWO)
    assert code == 0, said
    best = str(RUN / "checkpoints/best.ckpt")
    code, said = run(tmp_path, "predict", "--config", "tiny.yaml", "--ckpt_path", best, *TWO)
    assert code == 0, said
    with (tmp_path / RUN.with_name("version_1") / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == list(range(25))
