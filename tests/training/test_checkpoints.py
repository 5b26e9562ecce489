"""Claims about how Lightning saves here: killed at any moment, with any TMPDIR, on a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import NoReturn

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.plugins.environments import LightningEnvironment

from kora.adapters.checkpoint_files import read_checkpoint
from kora.runs.durable import sweep
from kora.training.checkpoints import (
    CheckedCheckpointIO,
    forget_foreign_checkpoints,
    with_checked_io,
)
from tests.support.faults import small_disk


def save_for_ever(writer: CheckedCheckpointIO, path: Path, step: int) -> NoReturn:
    """In a fork: checkpoints of the steps from this one on."""
    try:
        while True:
            weights = torch.full((100_000,), float(step))
            writer.save_checkpoint({"global_step": step, "state_dict": {"w": weights}}, path)
            step += 1
    finally:
        os._exit(1)


@pytest.mark.slow
def test_of_50_kills_during_a_save_none_leaves_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere, path = Path("/dev/shm"), tmp_path / "checkpoints/last.ckpt"
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system for TMPDIR")
    monkeypatch.setenv("TMPDIR", str(elsewhere))
    monkeypatch.setattr(tempfile, "tempdir", None)
    random, writer = Random(0), CheckedCheckpointIO()
    writer.save_checkpoint({"global_step": 0, "state_dict": {"w": torch.zeros(100_000)}}, path)
    strays, steps = 0, {0}
    for _ in range(50):
        child = os.fork()
        if not child:
            save_for_ever(writer, path, max(steps) + 1)
        time.sleep(random.uniform(0.02, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        strays += bool(list(path.parent.glob(f"*{child}*.tmp")))
        content = read_checkpoint(path)
        assert (content["state_dict"]["w"] == content["global_step"]).all()
        steps.add(content["global_step"])
    assert strays > 10  # they were killed while they were writing
    assert max(steps) > 10
    sweep(path.parent)
    left = sorted(p.name for p in path.parent.iterdir() if not p.name.endswith(".next"))
    assert left == ["last.ckpt", "last.ckpt.sha256"]


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    writer = CheckedCheckpointIO()
    with small_disk(tmp_path / "disk", size_mib=4) as disk:
        path = disk / "checkpoints/last.ckpt"
        writer.save_checkpoint({"w": torch.zeros(500_000)}, path)
        with pytest.raises(OSError, match=r"last\.ckpt cannot be written: No space left.*is kept"):
            writer.save_checkpoint({"w": torch.ones(700_000)}, path)
        assert torch.equal(read_checkpoint(path)["w"], torch.zeros(500_000))
        assert len(list(path.parent.iterdir())) == 2


def test_the_first_save_sweeps_the_folder_and_removal_takes_the_checksum(tmp_path: Path) -> None:
    writer, path = CheckedCheckpointIO(), tmp_path / "last.ckpt"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stray = tmp_path / f".kora-{os.uname().nodename}-{dead.pid}-00000000.tmp"
    stray.touch()
    writer.save_checkpoint({}, path)
    assert not stray.exists()
    writer.remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_beside_the_checkpoint_of_a_requeued_job_lies_nothing(tmp_path: Path) -> None:
    CheckedCheckpointIO().save_checkpoint({}, tmp_path / "hpc_ckpt_3.ckpt")
    # Lightning takes the digits of every name with "ckpt_" in it for the number of a checkpoint.
    assert [path.name for path in tmp_path.iterdir()] == ["hpc_ckpt_3.ckpt"]


def test_remote_checkpoints_are_lightnings_but_not_unpickled(tmp_path: Path) -> None:
    writer, path = CheckedCheckpointIO(), "memory://checkpoints/last.ckpt"
    writer.save_checkpoint({"w": torch.ones(2)}, path)
    assert torch.equal(writer.load_checkpoint(path)["w"], torch.ones(2))
    writer.save_checkpoint({"w": subprocess.Popen}, path)
    with pytest.raises(Exception, match="Unsupported global"):
        writer.load_checkpoint(path, weights_only=False)
    writer.remove_checkpoint(path)
    assert not sweep(tmp_path)


def test_ours_joins_the_plugins_of_the_user_but_no_other_of_its_kind() -> None:
    (alone,) = with_checked_io(None)
    assert isinstance(alone, CheckedCheckpointIO)
    environment = LightningEnvironment()
    for given in (environment, [environment]):
        first, second = with_checked_io(given)
        assert first is environment
        assert isinstance(second, CheckedCheckpointIO)
    for other in (AsyncCheckpointIO(), [TorchCheckpointIO()]):
        with pytest.raises(ValueError, match=r"trainer\.plugins: \w+CheckpointIO would.*Leave it"):
            with_checked_io(other)


def test_a_checkpoint_of_somebody_else_names_nothing_that_is_removed(tmp_path: Path) -> None:
    run, own = tmp_path / "run", str(tmp_path / "run/checkpoints/a.ckpt")
    foreign = ["local:///home/you/Documents", "/home/you/notes.txt", f"{run}/../other/b.ckpt"]
    state = {
        "best_model_path": own, "kth_best_model_path": foreign[0], "last_model_path": foreign[1],
        "best_k_models": dict.fromkeys([own, *foreign], 0.5),
    }  # fmt: skip
    forget_foreign_checkpoints(state, run)
    assert state == {
        "best_model_path": own, "kth_best_model_path": "", "last_model_path": "",
        "best_k_models": {own: 0.5},
    }  # fmt: skip
