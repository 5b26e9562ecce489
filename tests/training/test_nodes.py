"""A run on several nodes: as many processes as were asked for, and one run folder."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from kora.training.nodes import refuse_other_processes
from tests.support.armed import run
from tests.support.cli import REPOSITORY, results, tiny_config, write_config
from tests.support.kept import kept
from tests.support.two_ranks import free_port

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x"}
SLURM = {"SLURM_JOB_NAME": "kora", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("trainer", "env", "said"),
    [
        ({"devices": 2, "num_nodes": 2}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"},
         "trainer.devices: 2, but torchrun starts 4 processes on each node"),
        ({"devices": 4}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"},
         "Set trainer.num_nodes 2, or --nnodes 1"),
        ({"devices": 4, "num_nodes": 2}, {**TORCHRUN, "SLURM_NTASKS": "8", "SLURM_NNODES": "2"},
         "srun starts 4 torchrun on each node, expected one. Set --ntasks-per-node=1"),
        ({"devices": 4}, {**SLURM, "SLURM_NTASKS": "8", "SLURM_NNODES": "2"},
         "trainer.num_nodes: 1, but SLURM gave 2 nodes (SLURM_NNODES=2)"),
        ({"devices": [0, 1], "num_nodes": 2}, {**SLURM, "SLURM_NTASKS": "2", "SLURM_NNODES": "2"},
         "Set --ntasks-per-node=2, and start kora with srun"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_anybody_waits(
    trainer: dict[str, Any], env: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="Set ") as raised:
        refuse_other_processes(trainer, env)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("trainer", "env"),
    [
        ({"devices": 4, "num_nodes": 2}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}),
        ({"devices": 4, "num_nodes": 2}, {**SLURM, "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}),
        ({"devices": 1}, {**SLURM, "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}),
        ({"devices": "auto"}, {**SLURM, "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}),
        ({"devices": 2}, {}),
    ],
)
def test_what_fits_or_cannot_be_known_is_let_be(
    trainer: dict[str, Any], env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    refuse_other_processes(trainer, env)


@pytest.mark.slow
def test_two_nodes_of_two_processes_train_as_one_node(here: Path) -> None:
    # The frozen blocks are in shards within each node; what trains is whole, as with `ddp`.
    sharded = {"class_path": "kora.sharding.ShardedBackbone"}
    config = tiny_config()
    config["data"]["init_args"]["batch_size"] = 12
    config["trainer"] |= {
        "accelerator": "cpu", "strategy": sharded, "devices": 2, "num_nodes": 2
    }  # fmt: skip
    write_config(here / "tiny.yaml", config)
    port, tools = free_port(), here / "tools"
    with ExitStack() as exits:
        exits.enter_context(kept(REPOSITORY, tools))
        nodes = []
        for rank in range(2):
            out = exits.enter_context((here / f"{rank}.txt").open("wb"))
            command = [
                tools / "python", "-m", "torch.distributed.run", "--nnodes", "2", "--node_rank",
                str(rank), "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port",
                str(port), "-m", "kora", "fit", "--config", "tiny.yaml",
            ]  # fmt: skip
            nodes.append(subprocess.Popen(command, stdout=out, stderr=out, cwd=here))
        codes = [node.wait(timeout=240) for node in nodes]
    assert codes == [0, 0], (here / "0.txt").read_text() + (here / "1.txt").read_text()
    (folder,) = here.glob("runs/tiny/LoRA/seed0/version_*")
    assert results(folder)["finished"]
    assert "Run folder" in (here / "0.txt").read_text()
    assert "Run folder" not in (here / "1.txt").read_text()
    one = ("--trainer.num_nodes", "1", "--trainer.strategy", "ddp", "--data.batch_size", "24")
    code, said = run(here, "fit", "--config", "tiny.yaml", "--runs_dir", "alone", *one)
    assert code == 0, said
    (alone,) = here.glob("alone/tiny/LoRA/seed0/version_*")
    mine, theirs = results(folder)["metrics"], results(alone)["metrics"]
    assert mine["test/loss"] == pytest.approx(theirs["test/loss"], rel=1e-5)
