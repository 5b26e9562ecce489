"""Check that as many processes were started as the trainer expects; else they wait for each other.

SLURM and torchrun start the processes of a run on several nodes themselves, and say how many there
are by variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

__all__ = ["refuse_other_processes", "started_beside_others"]


def refuse_other_processes(trainer: Mapping[str, Any], env: Mapping[str, str]) -> None:
    """Refuse a trainer whose nodes and devices do not fit the processes that were started.

    Args:
        trainer: Options of the trainer; `devices` other than a number or a list are not checked.
        env: Environment of this process.

    Raises:
        ValueError: They do not fit; names the option, the variable, and the remedy.
    """
    devices = trainer.get("devices")
    if isinstance(devices, list):
        devices = len(devices)
    if not isinstance(devices, int) or isinstance(devices, bool) or devices < 1:
        return
    nodes = int(trainer.get("num_nodes") or 1)
    if TorchElasticEnvironment.detect():
        _under_torchrun(nodes, devices, env)
    elif SLURMEnvironment.detect():
        _under_slurm(nodes, devices, env)


def _under_torchrun(nodes: int, devices: int, env: Mapping[str, str]) -> None:
    here, everywhere = _number(env, "LOCAL_WORLD_SIZE"), _number(env, "WORLD_SIZE")
    started = _number(env, "SLURM_NTASKS")
    there = _number(env, "SLURM_NNODES")
    if started is not None and there is not None and started > there:
        raise ValueError(
            f"SLURM_NTASKS={started} on SLURM_NNODES={there}: srun starts {started // there} "
            "torchrun on each node, expected one. Set --ntasks-per-node=1."
        )
    if here is not None and here != devices:
        raise ValueError(
            f"trainer.devices: {devices}, but torchrun starts {here} processes on each node "
            f"(LOCAL_WORLD_SIZE={here}). Set --nproc_per_node {devices}, or trainer.devices {here}."
        )
    if everywhere is not None and everywhere != nodes * devices:
        raise ValueError(
            f"trainer.num_nodes: {nodes} and trainer.devices: {devices}, but torchrun has "
            f"{everywhere} processes (WORLD_SIZE={everywhere}). Set trainer.num_nodes "
            f"{everywhere // devices}, or --nnodes {nodes}."
        )


def _under_slurm(nodes: int, devices: int, env: Mapping[str, str]) -> None:
    there, tasks = _number(env, "SLURM_NNODES"), _number(env, "SLURM_NTASKS")
    if there is not None and there != nodes:
        raise ValueError(
            f"trainer.num_nodes: {nodes}, but SLURM gave {there} nodes (SLURM_NNODES={there}). "
            f"Set trainer.num_nodes {there}, or --nodes={nodes}."
        )
    if tasks is not None and tasks != nodes * devices:
        raise ValueError(
            f"trainer.num_nodes: {nodes} and trainer.devices: {devices}, but SLURM starts {tasks} "
            f"tasks (SLURM_NTASKS={tasks}), expected {nodes * devices}. Set "
            f"--ntasks-per-node={devices}, and start kora with srun."
        )


def _number(env: Mapping[str, str], name: str) -> int | None:
    text = env.get(name, "")
    return int(text) if text.isdecimal() else None


def started_beside_others() -> bool:
    """Whether srun or torchrun started this process and others of its run, and not Lightning."""
    kinds = TorchElasticEnvironment, SLURMEnvironment
    return any(kind.detect() and kind().world_size() > 1 for kind in kinds)
