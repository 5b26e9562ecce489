"""Claims about how Lightning saves here: killed at any moment, with any TMPDIR, on a full disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.plugins.environments import LightningEnvironment

from kora.adapters.checkpoint_files import read_checkpoint
from kora.runs.durable import sweep
from kora.training.checkpoints import CheckedCheckpointIO, with_checked_io
from tests.support.faults import small_disk

#: Forks children that only save, kills each within a save, and reads what they left.
KILLER = """
import io, json, os, random, signal, sys, time
from pathlib import Path
import torch
from kora.adapters.checkpoint_files import read_checkpoint
from kora.training.checkpoints import CheckedCheckpointIO
from kora.runs.durable import sweep

path, kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(0)
torch.set_num_threads(1)
writer = CheckedCheckpointIO()
writer.save_checkpoint({"global_step": 0, "state_dict": {"w": torch.zeros(100_000)}}, path)
corrupt, strays, steps = [], 0, set()
for kill in range(kills):
    start = read_checkpoint(path)["global_step"]
    child = os.fork()
    if not child:
        for step in range(start + 1, 10**9):
            weights = torch.full((100_000,), float(step))
            writer.save_checkpoint({"global_step": step, "state_dict": {"w": weights}}, path)
    time.sleep(random.uniform(0.02, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    strays += len(list(path.parent.glob("*.tmp")))
    try:
        content = read_checkpoint(path)
        assert (content["state_dict"]["w"] == content["global_step"]).all()
        steps.add(content["global_step"])
    except Exception as error:
        corrupt.append(repr(error))
sweep(path.parent)
left = sorted(p.name for p in path.parent.iterdir() if not p.name.endswith(".next"))
print(json.dumps({"corrupt": corrupt, "strays": strays, "saved": max(steps), "left": left}))
"""


@pytest.mark.slow
def test_of_50_kills_during_a_save_none_leaves_a_bad_file(tmp_path: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system for TMPDIR")
    command = [sys.executable, "-c", KILLER, str(tmp_path / "checkpoints/last.ckpt"), "50"]
    environment = {**os.environ, "TMPDIR": str(elsewhere)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["corrupt"] == []
    assert told["strays"] > 10  # they were killed while they were writing
    assert told["saved"] > 10
    assert told["left"] == ["last.ckpt", "last.ckpt.sha256"]


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
