"""The runs of a grid on the machines of a Ray cluster that share the folder of the runs.

A run is a Ray task, and the task runs `kora fit` in a process that ends with Ray's worker. Where a
worker or its machine dies, Ray starts the task again elsewhere, which finds the run's last
checkpoint in the shared folder and goes on from there.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from kora.grid.plan import Entry
from kora.grid.run import Outcome, run_job
from kora.grid.view import GridView
from kora.runs.processes import Stop

__all__ = ["cluster", "run_on_ray"]

_LOOK_S = 1.0
_KNOCK_S = 10.0
_STOP_S = 120.0  # for checkpoints


@contextmanager
def cluster(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at an address, or to the one that this machine is part of.

    Raises:
        ValueError: Ray is not installed.
        RuntimeError: There is no such cluster.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            "--launcher ray needs Ray on every machine: pip install 'kora-vit[ray]'"
        ) from error
    try:
        _knock(address)
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:  # ConnectionError among them
        where = f"at {address}" if address else "here"
        raise RuntimeError(
            f"There is no Ray cluster {where} ({str(error).partition(chr(10))[0]}). Start one with "
            "`ray start --head`, join other machines with `ray start --address HOST:PORT`, or name "
            "it with --ray_address."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError where nobody answers at HOST:PORT: Ray would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


def run_on_ray(
    ray: Any,
    entries: Sequence[Entry],
    *,
    num_cpus: float,
    num_gpus: float,
    retries: int,
    logs: Mapping[int, Path],
    view: GridView,
    stop: Stop,
) -> dict[int, Outcome]:
    """Run what is not finished, as many at once as the cluster has room for.

    Args:
        ray: Ray, connected.
        entries: What to run, in this order.
        num_cpus: Cores a run, which are its threads.
        num_gpus: GPUs a run.
        retries: So often a run is started again whose worker or machine died.
        logs: Where each prints, by its number.
        view: Is told what begins and ends.
        stop: Looked at all the time.
    """
    from ray.util.queue import Queue
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    # It lives with this process: on a machine that dies it would take everything down with it.
    pinned = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
    events = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": pinned})
    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=retries)(_task)
    threads = max(1, int(num_cpus))
    waiting = {
        task.remote(replace(e, folder=None), str(Path.cwd()), logs[e.number], threads, events): e
        for e in entries
    }
    by_number = {entry.number: entry for entry in entries}
    outcomes: dict[int, Outcome] = {}
    while waiting and stop.signal is None:
        done, _ = ray.wait(list(waiting), timeout=_LOOK_S)
        _report(events, by_number, view)
        for reference in done:
            entry = waiting.pop(reference)
            outcomes[entry.number] = _outcome(ray, reference)
            view.ended(entry, outcomes[entry.number])
    for reference in waiting:
        ray.cancel(reference)
    if waiting and not stop.at_once:
        ray.wait(list(waiting), num_returns=len(waiting), timeout=_STOP_S)
    return outcomes | {entry.number: Outcome(None, "stopped") for entry in waiting.values()}


def _task(entry: Entry, folder: str, log: Path, threads: int, events: Any) -> Outcome:
    """One run, on whatever machine this is."""
    if not Path(folder).is_dir():
        return Outcome(
            None, f"{platform.node()} has no folder {folder}; all machines must share it there"
        )
    os.chdir(folder)
    import ray

    node = str(ray.get_runtime_context().get_node_id())
    events.put((entry.number, f"{platform.node()} ({node[:8]})", None))
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return run_job(
        entry.job, entry.config, stop=Stop(), env=env, log=log,
        say=lambda text: events.put((entry.number, "", text)),
    )  # fmt: skip


def _report(events: Any, entries: Mapping[int, Entry], view: GridView) -> None:
    """Tell what the machines have told."""
    for number, where, text in events.get_nowait_batch(events.qsize()):
        if text is None:
            view.started(entries[number], where)
        else:
            view.say(f"{entries[number].job.name}: {text}")


def _outcome(ray: Any, reference: Any) -> Outcome:
    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:  # died as often as is allowed, or a bug of ours
        return Outcome(None, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    return outcome
