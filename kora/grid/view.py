"""What a grid shows while it runs: lines, and on a terminal a live view of active runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from kora.console.formats import duration
from kora.grid.plan import FINISHED, Entry
from kora.grid.run import Outcome
from kora.runs.results import read_results

__all__ = ["Estimate", "GridView"]


class Estimate:
    """Expected seconds left, from the durations of runs.

    A run is expected to take the mean of its kind (other seeds), or else of all runs. Runs that
    were finished earlier count with their recorded seconds.

    Args:
        entries: All runs of the grid.
        clock: Returns seconds.
    """

    def __init__(
        self, entries: Sequence[Entry], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._took: dict[str, list[float]] = {}
        self._left = {e.number: e for e in entries if e.state != FINISHED}
        self._started: dict[int, float] = {}
        for entry in entries:
            if entry.folder is not None and entry.state == FINISHED:
                with suppress(OSError, ValueError, RuntimeError):  # its seconds are not known then
                    self._note(entry, sum(read_results(entry.folder).seconds.values()))

    def _note(self, entry: Entry, seconds: float) -> None:
        if seconds > 0:
            self._took.setdefault(entry.job.kind, []).append(seconds)

    def started(self, entry: Entry) -> None:
        """A run started, or started again."""
        self._started[entry.number] = self._clock()

    def ended(self, entry: Entry, *, finished: bool) -> None:
        """A run ended; it counts for the estimate if it finished without having been resumed."""
        began = self._started.pop(entry.number, None)
        self._left.pop(entry.number, None)
        if finished and began is not None and entry.state == "to run":
            self._note(entry, self._clock() - began)

    def elapsed(self, entry: Entry) -> float:
        """Seconds since a run began."""
        began = self._started.get(entry.number)
        return 0.0 if began is None else self._clock() - began

    def seconds_left(self, at_once: int) -> float | None:
        """Seconds left for the grid with `at_once` runs at a time; None while nothing is known."""
        if not self._took:
            return None
        left = [max(0.0, self._typical(e) - self.elapsed(e)) for e in self._left.values()]
        return max([sum(left) / max(1, at_once), *left], default=0.0)

    def _typical(self, entry: Entry) -> float:
        same = self._took.get(entry.job.kind)
        known = same or [seconds for took in self._took.values() for seconds in took]
        return sum(known) / len(known)


class GridView:
    """Prints which runs start and end. On a terminal, the active runs are shown below.

    Args:
        entries: All runs of the grid.
        at_once: Number of runs at once; None if others decide.
        live: Keep a view on the terminal; no run may print there then.
        console: Where to print; None: standard output.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        *,
        at_once: int | None,
        live: bool,
        console: Console | None = None,
    ) -> None:
        self.console = console or Console()
        self.estimate = Estimate(entries)
        self._at_once = at_once
        self._running: dict[int, tuple[Entry, str]] = {}
        self._todo = sum(entry.state != FINISHED for entry in entries)
        self._begun: set[int] = set()
        self._ended = 0
        self._failed = 0
        self._live: Live | None = None
        if live and self.console.is_terminal:
            self._live = Live(
                console=self.console, get_renderable=self.picture, refresh_per_second=2,
                transient=True,
            )  # fmt: skip

    def __enter__(self) -> GridView:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(f"kora: {text}", markup=False, highlight=False, soft_wrap=True)

    def started(self, entry: Entry, where: str = "") -> None:
        """A run starts, or starts again elsewhere."""
        again = entry.number in self._begun
        self._begun.add(entry.number)
        self._running[entry.number] = (entry, where)
        self.estimate.started(entry)
        head = "again" if again else f"run {len(self._begun)} of {self._todo}"
        place = f" on {where}" if where else ""
        self.say(f"{head}: {entry.job.name}{place} (time left: {self.time_left()})")

    def ended(self, entry: Entry, outcome: Outcome) -> None:
        """A run finished, failed or was stopped."""
        self._running.pop(entry.number, None)
        self._begun.add(entry.number)
        self.estimate.ended(entry, finished=outcome.folder is not None)
        self._ended += 1
        if outcome.folder is None:
            self._failed += outcome.why != "stopped"
            verb = "stopped" if outcome.why == "stopped" else f"failed, {outcome.why}"
            self.say(f"{verb}: {entry.job.name}")
        else:
            took = f" in {duration(outcome.seconds)}" if outcome.seconds else ""
            self.say(f"done{took}: {entry.job.name} ({self._ended} of {self._todo})")

    def time_left(self) -> str:
        """The time left, in words."""
        seconds = self.estimate.seconds_left(self._at_once or len(self._running))
        return "not known yet" if seconds is None else f"about {duration(seconds)}"

    def picture(self) -> RenderableType:
        """Progress of the grid, and the active runs."""
        whole = Table.grid(padding=(0, 2))
        count = f"{self._ended} of {self._todo} runs"
        failed = f", {self._failed} failed" if self._failed else ""
        bar = ProgressBar(total=max(1, self._todo), completed=self._ended, width=30)
        whole.add_row(count + failed, bar, f"time left: {self.time_left()}")
        runs = Table.grid(padding=(0, 2))
        for entry, where in list(self._running.values()):
            took = duration(self.estimate.elapsed(entry))
            runs.add_row(*map(Text, (f"  {entry.job.name}", where, took)))
        return Group(whole, runs)
