"""What a difference between two groups of runs says, in a word and a sentence, by one rule.

The rule: *ahead* or *behind* is said only where everything that could be computed excludes zero:
the t-interval over seeds, the bootstrap interval over seeds and test images, and p below 0.05
after Holm's correction. Else the two are *not told apart*, and the sentence says what is missing.
With one common seed nothing speaks of other seeds; then the word is restricted to that seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kora.analysis.statistics import images_needed, seeds_needed
from kora.formats import format_number, is_rate

if TYPE_CHECKING:
    from kora.comparison import Difference

__all__ = ["LEVEL", "RULE", "Verdict", "signed", "verdict"]

LEVEL = 0.05
RULE = (
    "Verdict: ahead or behind only where the t-interval over seeds, the bootstrap interval and "
    "p (Holm) < 0.05, as far as there are such, all exclude zero. Numbers of seeds and images that "
    "would tell are for 80 % power at 5 % if the difference stays as it is, which few seeds "
    "know only roughly."
)


@dataclass(frozen=True)
class Verdict:
    """How a group stands to the reference.

    Args:
        word: `ahead`, `behind` or `not told apart`; ` (seed 0 only)` may follow.
        sentence: the same with its reasons.
        seeds_needed: common seeds that would tell, where more of them would.
        images_needed: test images that would tell, where more of them would.
    """

    word: str
    sentence: str
    seeds_needed: int | None = None
    images_needed: int | None = None


def verdict(
    name: str,
    reference: str,
    difference: Difference,
    metric: str,
    *,
    comparisons: int = 1,
    seed: int | None = None,
) -> Verdict:
    """The verdict on a group.

    Args:
        name: of the group.
        reference: the group that it was compared with.
        difference: between them.
        metric: whose difference it is.
        comparisons: how many p-values are corrected together.
        seed: the common seed, where it is one.
    """
    d = difference
    better = (d.mean > 0) == is_rate(metric)
    by_images = _excludes_by_images(d)
    if d.n == 1:
        return _of_one_seed(name, reference, d, metric, comparisons=comparisons, seed=seed)
    over_seeds = _excludes(_bounds(d))
    size = signed(metric, d.mean, unit=True)
    span = _span(metric, _bounds(d))
    if over_seeds and by_images is not False:
        word = "ahead" if better else "behind"
        of = "" if by_images is None else f" and of images (p {_p(d.p_holm)})"
        tail = "" if by_images is not None else " Test images were not considered."
        sentence = (
            f"{name} is {word} {'of ' if better else ''}{reference}: {size}; chance of seeds "
            f"({span}, {d.n} seeds){of} does not explain it.{tail}"
        )
        return Verdict(word, sentence)
    reasons, more = [], []
    seeds = images = None
    if not over_seeds:
        reasons.append(f"the difference between seeds may be chance ({span} over {d.n} seeds)")
        seeds = seeds_needed(d.mean, d.std or 0.0, level=LEVEL)
        more.append(_told(seeds, "common seeds", d.n))
    if by_images is False:
        if d.p_holm is not None and d.p_holm >= LEVEL:
            reasons.append(f"{d.images:,} test images are too few for it (p {_p(d.p_holm)})")
            images = images_needed(d.mean, d.image_std or 0.0, level=LEVEL / comparisons)
            more.append(_told(images, "test images", d.images or 0))
        else:
            low, high = d.bootstrap or (0.0, 0.0)
            reasons.append(
                f"the bootstrap over seeds and images includes zero ({_span(metric, (low, high))})"
            )
    but = ""
    if by_images and not over_seeds:
        but = f" These trained models do differ on images like these (p {_p(d.p_holm)})."
    sentence = (
        f"{name} and {reference} are not told apart ({size}): {' and '.join(reasons)}.{but}"
        + (f" {_joined(more)}" if more else " More seeds would tell.")
    )
    return Verdict("not told apart", sentence, seeds, images)


def _of_one_seed(
    name: str, reference: str, d: Difference, metric: str, *, comparisons: int, seed: int | None
) -> Verdict:
    """Images can tell two trained models apart; that the strategies differ, one seed cannot say."""
    only = f"seed {seed} only" if seed is not None else "one seed only"
    size = signed(metric, d.mean, unit=True)
    caution = "One seed says nothing of other seeds: run three or more."
    by_images = _excludes_by_images(d)
    if by_images is None:
        sentence = (
            f"{name} and {reference} are not told apart ({size}): one common seed, and nothing is "
            f"known of single images. {caution}"
        )
        return Verdict("not told apart", sentence)
    assert d.bootstrap is not None
    span = f"{_span(metric, d.bootstrap)} over {d.images:,} test images alone, p {_p(d.p_holm)}"
    better = (d.mean > 0) == is_rate(metric)
    if by_images:
        word = "ahead" if better else "behind"
        sentence = (
            f"{name} is {word} {'of ' if better else ''}{reference} with this one seed: {size} "
            f"({span}). {caution}"
        )
        return Verdict(f"{word} ({only})", sentence)
    images = images_needed(d.mean, d.image_std or 0.0, level=LEVEL / comparisons)
    sentence = (
        f"{name} and {reference} are not told apart ({size}): chance of images may explain it "
        f"({span}). {_joined([_told(images, 'test images', d.images or 0)])} {caution}"
    )
    return Verdict("not told apart", sentence, None, images)


def signed(metric: str, value: float, *, unit: bool = False) -> str:
    """A difference with its sign: in percentage points for a rate."""
    number = f"{abs(value) * 100:.2f}" if is_rate(metric) else format_number(abs(value), digits=3)
    text = ("+" if value >= 0 else "−") + number
    return text + (" points" if unit and is_rate(metric) else "")


def _excludes_by_images(d: Difference) -> bool | None:
    """Whether interval and p-value from single images exclude zero; None without them."""
    if d.p_holm is None or d.bootstrap is None:
        return None
    return d.p_holm < LEVEL and _excludes(d.bootstrap)


def _excludes(bounds: tuple[float, float]) -> bool:
    return bounds[0] > 0 or bounds[1] < 0


def _bounds(d: Difference) -> tuple[float, float]:
    half = d.half_width or 0.0
    return d.mean - half, d.mean + half


def _span(metric: str, bounds: tuple[float, float]) -> str:
    return f"{signed(metric, bounds[0])} to {signed(metric, bounds[1])}"


def _p(p: float | None) -> str:
    assert p is not None
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _told(needed: int | None, what: str, there: int) -> str:
    if needed is None:
        return f"no practical number of {what}"
    if what == "test images":
        digits = max(len(str(needed)) - 2, 0)  # two digits tell enough
        needed = -(-needed // 10**digits) * 10**digits
    return f"about {needed:,} {what} (there are {there:,})"


def _joined(more: list[str]) -> str:
    text = " and ".join(more)
    return f"{text[:1].upper()}{text[1:]} would tell, if the difference stays as it is."
