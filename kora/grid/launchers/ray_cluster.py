"""Tasks on the machines of a Ray cluster that share the folder of the runs.

Each task is a Ray task. It runs `kora fit` in a child process that ends with Ray's worker. If a
worker or its machine dies, Ray starts the task again elsewhere. The task then resumes from the
run's last checkpoint in the shared folder.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kora.console.errors import first_line
from kora.grid.dispatch import Began, Ended, Said, Task, run_task
from kora.grid.plan import Entry
from kora.grid.run import Outcome
from kora.runs.processes import Stop

__all__ = ["OnRay", "cluster"]

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
            f"There is no Ray cluster {where} ({first_line(error)}). Start one with "
            "`ray start --head`, join other machines with `ray start --address HOST:PORT`, or name "
            "it with --ray_address."
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError if nothing answers at HOST:PORT; Ray would try for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_KNOCK_S).close()


class OnRay:
    """Launches tasks on a Ray cluster, as many at once as it has room for.

    Args:
        ray: Ray, connected.
        num_cpus: Cores of a task, and its number of threads.
        num_gpus: GPUs of a task.
        retries: How often a task is started again if its worker or machine dies.
        at_once: Largest number of tasks at a time; None: as many as there is room for.
        stop: Checked at each call of `events`.
    """

    def __init__(
        self, ray: Any, *, num_cpus: float, num_gpus: float, retries: int, at_once: int | None,
        stop: Stop,
    ) -> None:  # fmt: skip
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self.at_once = at_once
        self._ray = ray
        self._stop = stop
        here = ray.get_runtime_context().get_node_id()
        # The queue stays on this machine: if it were on one that dies, all events would be lost.
        pinned = NodeAffinitySchedulingStrategy(node_id=here, soft=False)
        self._told = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": pinned})
        self._task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=retries)(_task)
        self._threads = max(1, int(num_cpus))
        self._waiting: dict[Any, Entry] = {}

    def start(self, task: Task) -> None:
        """Submit a task to the cluster."""
        reference = self._task.remote(task, str(Path.cwd()), self._threads, self._told)
        self._waiting[reference] = task.entry

    def events(self) -> list[Began | Said | Ended]:
        """Messages of the machines, and tasks that ended; a stop cancels all tasks."""
        if self._stop.signal is not None:
            return self._cancelled()
        done, _ = self._ray.wait(list(self._waiting), timeout=_LOOK_S)
        found: list[Began | Said | Ended] = self._told.get_nowait_batch(self._told.qsize())
        return found + [self._ended(reference) for reference in done]

    def _cancelled(self) -> list[Began | Said | Ended]:
        for reference in self._waiting:
            self._ray.cancel(reference)
        if not self._stop.at_once:
            everyone = len(self._waiting)
            self._ray.wait(list(self._waiting), num_returns=everyone, timeout=_STOP_S)
        entries = list(self._waiting.values())
        self._waiting.clear()
        return [Ended(entry, [Outcome(None, "stopped")]) for entry in entries]

    def _ended(self, reference: Any) -> Ended:
        entry = self._waiting.pop(reference)
        try:
            found: Ended = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:  # died too often, or a bug in kora
            why = f"killed ({type(error).__name__}: {first_line(error)})"
            return Ended(entry, [Outcome(None, why)])
        return found


def _task(task: Task, folder: str, threads: int, told: Any) -> Ended:
    """Run a task on the machine that Ray chose."""
    if not Path(folder).is_dir():
        why = f"{platform.node()} has no folder {folder}; all machines must share it there"
        return Ended(task.entry, [Outcome(None, why, ran=False)])
    os.chdir(folder)
    import ray

    node = str(ray.get_runtime_context().get_node_id())
    told.put(Began(task.entry, f"{platform.node()} ({node[:8]})"))
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return run_task(task, folder=Path(folder), stop=Stop(), env=env, tell=told.put)
