"""Match strategies by trainable parameters: the size of each that comes nearest to a target."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from rich.console import Group
from rich.table import Table

from kora.adapters import Strategy, resized
from kora.backbone.vit import Backbone
from kora.backbone.weights import without_numbers
from kora.console.tables import literal

__all__ = ["Match", "count_trainable", "match", "nearest_size", "render"]

#: Difference in per cent up to which two strategies count as equally large.
TOLERANCE_PERCENT = 5.0
_ENDLESS = 2**40  # wider than any layer


@dataclass(frozen=True)
class Match:
    """One strategy at the size that comes nearest to the target; the head is not counted."""

    config: str
    strategy: str
    argument: str | None  # None: its size is fixed
    configured: int | None
    size: int | None
    parameters: int
    difference_percent: float

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def match(
    strategies: Iterable[tuple[str, Strategy]], backbone: Backbone, target: int
) -> list[Match]:
    """The best size of each strategy; they come with their configs and are not attached yet.

    Raises:
        ValueError: A strategy does not fit the backbone as it is configured.
    """
    return [_match_one(config, strategy, backbone, target) for config, strategy in strategies]


def count_trainable(strategy: Strategy, backbone: Backbone) -> int:
    """Parameters that a strategy would train on a backbone; changes neither, needs no storage."""
    fresh, twin = copy.deepcopy((strategy, backbone))
    with without_numbers():
        fresh.attach(twin)
    return sum(parameter.numel() for _, parameter in fresh.trainable())


def nearest_size(count: Callable[[int], int], target: int, *, start: int) -> tuple[int, int]:
    """The size whose count is nearest to the target, and that count; on a tie, the smaller one.

    Counts must grow with the size. A size that `count` refuses with a ValueError is too large; if
    it refuses `start`, that error is raised. Counts are nearly always affine in the size, so
    guesses follow the line through the two nearest counts; if that does not help, they bisect.
    """
    counts: dict[int, float] = {start: count(start)}
    low, high, guess = 0, _ENDLESS, start
    while high - low > 1:
        if guess not in counts:
            try:
                counts[guess] = count(guess)
            except ValueError:
                counts[guess] = math.inf
        if counts[guess] == target:
            return guess, target
        if counts[guess] < target:
            assert counts[guess] > counts.get(low, -1), "it does not grow with its size"
            low = guess
        else:
            high = guess
        guess = _next_guess(counts, target, low, high)
    best = min(_finite(counts), key=lambda size: (abs(counts[size] - target), size))
    return best, int(counts[best])


def render(matches: list[Match], target: int, *, origin: str, backbone: str) -> Group:
    """A table with one strategy per row, and advice if the size alone is not enough."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("strategy, config", overflow="fold")
    for name in ("size", "instead of", "parameters", "difference"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in matches:
        fixed = row.argument is None
        table.add_row(
            f"{literal(row.strategy)}\n[dim]{literal(row.config)}[/]",
            "fixed" if fixed else f"{row.argument} {row.size}",
            "" if fixed else "by classes" if row.configured is None else str(row.configured),
            f"{row.parameters:,}",
            f"{row.difference_percent:+.2f} %",
        )
    notes = [_note(row) for row in matches if abs(row.difference_percent) > TOLERANCE_PERCENT]
    title = f"Nearest to {target:,} trainable parameters without the head, on {backbone}"
    return Group(
        title, literal(f"({origin})"), "", table, *map(literal, ["", *notes] * bool(notes))
    )


def _note(row: Match) -> str:
    """Advice on a strategy that does not come near the target."""
    if row.argument is None:
        return f"{row.strategy} ({row.config}): no rank or width makes it larger or smaller."
    return (
        f"{row.strategy} ({row.config}): no {row.argument} comes within {TOLERANCE_PERCENT:g} %. "
        "Change its sites, blocks or other widths as well."
    )


def _match_one(config: str, strategy: Strategy, backbone: Backbone, target: int) -> Match:
    argument = strategy.size_argument
    configured: int | None = None
    size: int | None = None
    if argument is None:
        parameters = count_trainable(strategy, backbone)
    else:
        configured = attrgetter(argument)(strategy)
        size, parameters = nearest_size(
            lambda n: count_trainable(resized(strategy, n), backbone), target, start=configured or 1
        )
    difference = round(100 * (parameters - target) / target, 2)
    return Match(config, strategy.label, argument, configured, size, parameters, difference)


def _next_guess(counts: dict[int, float], target: int, low: int, high: int) -> int:
    """A size strictly between the bounds."""
    nearest = sorted(_finite(counts), key=lambda size: abs(counts[size] - target))[:2]
    refused = high < _ENDLESS and counts[high] == math.inf
    if len(nearest) == 2 and len(counts) < 8 and not refused:
        one, other = nearest
        slope = (counts[other] - counts[one]) / (other - one)
        guess = math.floor(one + (target - counts[one]) / slope)
    elif high == _ENDLESS:  # as if counts were proportional to the size
        guess = max(2 * low, round(low * target / max(counts[low], 1)))
    else:
        guess = (low + high) // 2
    return min(max(guess, low + 1), high - 1)


def _finite(counts: dict[int, float]) -> list[int]:
    return [size for size in counts if counts[size] < math.inf]
