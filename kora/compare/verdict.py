"""The verdict on a difference between two groups of runs: a word and a sentence, by one rule.

The rule: *ahead* or *behind* only if everything that could be computed excludes zero: the
t-interval over seeds, the bootstrap interval over seeds and test images, and p below 0.05 after
Holm's correction. Otherwise the two are *not told apart*, and the sentence says what is missing.
One common seed shows nothing about other seeds, so the word is then restricted to that seed.
"""

from __future__ import annotations

from dataclasses import dataclass

from kora.analysis.statistics import images_needed, seeds_needed
from kora.console.formats import format_p, format_spread, is_better_higher, is_rate

__all__ = ["LEVEL", "RULE", "Difference", "Verdict", "signed", "verdict"]

LEVEL = 0.05
RULE = (
    "Verdict: ahead or behind only if all that could be computed excludes zero: the t-interval "
    "over seeds, the bootstrap interval, and p (Holm) < 0.05. Numbers of seeds and images that "
    "would tell are for 80 % power at 5 %, if the difference stays as it is; few seeds give it "
    "only roughly."
)


@dataclass(frozen=True)
class Difference:
    """Mean of (group - reference) over the n seeds that both have; no t-interval for n = 1.

    The rest needs the outcomes of each image; see `kora.analysis.statistics`.
    """

    n: int
    mean: float
    half_width: float | None  # of the 95 % t-interval over seeds
    std: float | None = None  # of the differences over seeds; None for one
    images: int | None = None  # number of test images that the rest is computed from
    bootstrap: tuple[float, float] | None = None  # 95 %, seeds (if several) and images resampled
    p: float | None = None  # signs flipped per image
    p_holm: float | None = None  # corrected over the groups of the comparison
    image_std: float | None = None  # over images, of the difference averaged over seeds


@dataclass(frozen=True)
class Verdict:
    """How a group compares with the reference."""

    word: str  # `ahead`, `behind` or `not told apart`; ` (seed 0 only)` may follow
    sentence: str  # the same with its reasons
    seeds_needed: int | None = None  # common seeds that would tell, if more of them would
    images_needed: int | None = None  # test images, likewise


def verdict(
    name: str,
    reference: str,
    difference: Difference,
    metric: str,
    *,
    comparisons: int = 1,
    seed: int | None = None,
) -> Verdict:
    """The verdict on a group; `comparisons` p-values are corrected together."""
    d = difference
    if d.n == 1:
        return _of_one_seed(name, reference, d, metric, comparisons=comparisons, seed=seed)
    by_images = _excludes_by_images(d)
    # Rates on few images: an interval of no width says nothing of other seeds.
    equal = (d.std or 0.0) <= 1e-9 * abs(d.mean)
    over_seeds = _excludes(_bounds(d)) and not (equal and by_images is None)
    if over_seeds and by_images is not False:
        word = "ahead" if _better(d, metric) else "behind"
        if by_images is None:
            of, tail = "", " Test images were not considered."
        else:
            of, tail = f", and p {format_p(d.p_holm)} over {d.images:,} test images", ""
        return Verdict(
            word,
            f"{_how(name, reference, d, metric)}: {_span(metric, _bounds(d))} over {d.n} seeds{of}."
            + tail,
        )
    reasons, more = [], []
    seeds = images = None
    if equal and not over_seeds:
        reasons.append(f"it is equal for all {d.n} seeds, so their spread is not known")
    elif not over_seeds:
        reasons.append(f"{d.n} seeds leave {_span(metric, _bounds(d))} possible")
        seeds = seeds_needed(d.mean, d.std or 0.0, level=LEVEL)
        more.append(_about(seeds, "common seeds", d.n))
    if by_images is False:
        assert d.bootstrap is not None
        assert d.p_holm is not None
        if d.p_holm >= LEVEL:
            reasons.append(f"{d.images:,} test images are too few for it (p {format_p(d.p_holm)})")
            images = images_needed(d.mean, d.image_std or 0.0, level=LEVEL / comparisons)
            more.append(_about(images, "test images", d.images or 0))
        else:
            reasons.append(f"seeds and images together leave {_span(metric, d.bootstrap)} possible")
    but = ""
    if by_images and not over_seeds:
        but = f" On images like these the trained models do differ (p {format_p(d.p_holm)})."
    sentence = (
        f"{name} and {reference} are not told apart. The difference is "
        f"{signed(metric, d.mean, unit=True)}, but {' and '.join(reasons)}.{but} "
        + (_joined(more) if more else "More seeds would tell.")
    )
    return Verdict("not told apart", sentence, seeds, images)


def _of_one_seed(
    name: str, reference: str, d: Difference, metric: str, *, comparisons: int, seed: int | None
) -> Verdict:
    """With one seed, images can tell two trained models apart, but not two strategies."""
    with_seed = "one seed" if seed is None else f"seed {seed}"
    caution = "One seed says nothing about other seeds: run three or more."
    apart = (
        f"{name} and {reference} are not told apart. The difference is "
        f"{signed(metric, d.mean, unit=True)} with {with_seed} alone"
    )
    by_images = _excludes_by_images(d)
    if by_images is None:
        return Verdict("not told apart", f"{apart}. {caution}")
    assert d.bootstrap is not None
    span, p = _span(metric, d.bootstrap), format_p(d.p_holm)
    if by_images:
        word = "ahead" if _better(d, metric) else "behind"
        return Verdict(
            f"{word} ({with_seed} only)",
            f"{_how(name, reference, d, metric)} with {with_seed} alone: {span} over {d.images:,} "
            f"test images, p {p}. {caution}",
        )
    images = images_needed(d.mean, d.image_std or 0.0, level=LEVEL / comparisons)
    more = _joined([_about(images, "test images", d.images or 0)])
    sentence = f"{apart}, but {d.images:,} test images leave {span} possible (p {p}). "
    return Verdict("not told apart", f"{sentence}{more} {caution}", None, images)


def _better(d: Difference, metric: str) -> bool:
    return (d.mean > 0) == is_better_higher(metric)


def _how(name: str, reference: str, d: Difference, metric: str) -> str:
    """For example: KoRA is ahead of LinearProbe by 3.00 points."""
    word = "ahead of" if _better(d, metric) else "behind"
    return f"{name} is {word} {reference} by {signed(metric, abs(d.mean), unit=True)[1:]}"


def signed(metric: str, value: float, *, unit: bool = False) -> str:
    """A difference with its sign: in percentage points for a rate."""
    text = ("+" if value >= 0 else "−") + format_spread(metric, abs(value))
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


def _about(needed: int | None, what: str, there: int) -> str:
    if needed is None:
        return f"no practical number of {what}"
    if what == "test images":
        digits = max(len(str(needed)) - 2, 0)  # two digits are enough
        needed = -(-needed // 10**digits) * 10**digits
    return f"about {needed:,} {what} (there are {there:,})"


def _joined(more: list[str]) -> str:
    text = " and ".join(more)
    return f"{text[:1].upper()}{text[1:]} would tell, if the difference stays as it is."
