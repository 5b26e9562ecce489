"""Numbers in words, as the terminal and the page of `kora adapt` show them."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Lead", "answer", "percent"]

#: A lead is called one if chance gives it less often than this.
_LEVEL = 0.05


class Lead(NamedTuple):
    """How far the best strategy is ahead of the linear probe on the test images.

    Args:
        probe: The score of the linear probe.
        gain: The lead.
        interval: Its 95 % interval.
        p: How often chance gives a difference as large.
    """

    probe: float
    gain: float
    interval: tuple[float, float]
    p: float


def answer(
    claim: str,
    interval: tuple[float, float],
    guess: str,
    lead: Lead | None,
    *,
    of: str,
    alone: str = "No other strategy was clearly better by validation.",
) -> str:
    """The result in words.

    Args:
        claim: What the best strategy does, with its score.
        interval: The 95 % interval of that score.
        guess: What a prediction that sees no image scores.
        lead: Of the best strategy; None if it is the linear probe.
        of: What is tested, `pictures` or `images`.
        alone: What is said if the linear probe is the best.
    """
    low, high = interval
    text = f"{claim} (95 % interval {percent(low)} to {percent(high)}; {guess}"
    if lead is None:
        return f"{text}). {alone}"
    text += f"; a linear probe {percent(lead.probe)}). "
    below, above = lead.interval
    points = f"{100 * lead.gain:+.1f} points ({100 * below:+.1f} to {100 * above:+.1f})"
    if lead.p < _LEVEL and lead.gain > 0:
        return f"{text}Its lead over the linear probe, {points}, is more than chance."
    if lead.p < _LEVEL:
        return f"{text}The linear probe is ahead on the test {of}: {points}."
    return f"{text}Its difference from the linear probe, {points}, may be chance."


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f} %"
