"""The runs of a grid on this machine, one after another or several at once."""

from __future__ import annotations

import os
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock

from kora.grid.plan import Entry
from kora.grid.run import Outcome, run_job, share_of_threads
from kora.grid.view import GridView
from kora.runs.processes import Stop
from kora.training.config_lock import is_taken

__all__ = ["run_here"]


def run_here(
    entries: Sequence[Entry],
    *,
    at_once: int,
    logs: Mapping[int, Path],
    env: Mapping[str, str] | None,
    view: GridView,
    stop: Stop,
) -> dict[int, Outcome]:
    """Run what is not finished; outcomes by the number of the run.

    Args:
        entries: What to run, in this order; but what another process sees to comes last.
        at_once: So many at a time; above 1 each gets its share of the cores.
        logs: Where each prints, by its number; the others print where this process does.
        env: Of the runs; None: that of this process.
        view: Is told what begins and ends.
        stop: Looked at all the time.
    """
    env = os.environ if env is None else env
    env = env if at_once == 1 else share_of_threads(at_once, env)
    # The threads only report: one thread alone prints, and it is the one that signals reach.
    events: queue.Queue[tuple[Entry, Outcome | str | None]] = queue.Queue()
    rest, picking = list(entries), Lock()

    def run() -> None:
        with picking:
            entry = _next_of(rest) if stop.signal is None else rest[0]
            rest.remove(entry)
        outcome = Outcome(None, "stopped")
        try:
            if stop.signal is None:
                events.put((entry, None))
                outcome = run_job(
                    entry.job, entry.config, stop=stop, env=env, log=logs.get(entry.number),
                    say=lambda text: events.put((entry, text)),
                )  # fmt: skip
        except Exception as error:  # no room for a log, say: that is this run's failure alone
            outcome = Outcome(None, f"{type(error).__name__}: {error}")
        finally:
            events.put((entry, outcome))

    outcomes: dict[int, Outcome] = {}
    with ThreadPoolExecutor(at_once) as pool:
        for _ in entries:
            pool.submit(run)
        while len(outcomes) < len(entries):
            entry, event = events.get()
            if event is None:
                view.started(entry)
            elif isinstance(event, str):
                view.say(f"{entry.job.name}: {event}")
            else:
                outcomes[entry.number] = event
                if stop.signal is None or event.folder is not None:
                    view.ended(entry, event)
    return outcomes


def _next_of(rest: Sequence[Entry]) -> Entry:
    """The first that no other process sees to, or the first of all."""
    return next((entry for entry in rest if not _is_elsewhere(entry)), rest[0])


def _is_elsewhere(entry: Entry) -> bool:
    try:
        return is_taken(entry.config)
    except OSError:  # the attempt to run it fails of the same, and tells
        return False
