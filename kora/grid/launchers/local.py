"""Tasks on this machine, one after another or several at once."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kora.grid.dispatch import Began, Ended, Said, Task, run_task
from kora.grid.run import share_of_threads
from kora.runs.processes import Stop

__all__ = ["Here", "here"]


class Here:
    """Launches tasks on this machine; several at once share the cores.

    The pool's threads only report events. Only the main thread, which receives signals, prints.
    """

    def __init__(
        self, pool: ThreadPoolExecutor, at_once: int, env: Mapping[str, str], stop: Stop
    ) -> None:
        self.at_once = at_once
        self._pool = pool
        self._env = env if at_once == 1 else share_of_threads(at_once, env)
        self._stop = stop
        self._folder = Path.cwd()
        self._events: queue.Queue[Began | Said | Ended] = queue.Queue()

    def start(self, task: Task) -> None:
        """Start a task."""
        self._events.put(Began(task.entry))
        self._pool.submit(self._run, task)

    def _run(self, task: Task) -> None:
        ended = run_task(
            task, folder=self._folder, stop=self._stop, env=self._env, tell=self._events.put
        )
        self._events.put(ended)

    def events(self) -> list[Began | Said | Ended]:
        """Wait for the next event."""
        return [self._events.get()]


@contextmanager
def here(at_once: int, env: Mapping[str, str], stop: Stop) -> Iterator[Here]:
    """A launcher for this machine; waits for all tasks at its end."""
    with ThreadPoolExecutor(at_once) as pool:
        yield Here(pool, at_once, env, stop)
