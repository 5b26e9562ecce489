"""Display of metrics and baselines."""

from __future__ import annotations

import re

__all__ = [
    "HEADLINES",
    "baseline_name",
    "duration",
    "format_metric",
    "format_number",
    "format_p",
    "format_spread",
    "is_better_higher",
    "is_rate",
    "named_metric",
    "short_name",
]

#: The metric by which runs of a task are compared: classification, depth, segmentation, detection.
HEADLINES = ("accuracy", "rmse_m", "miou", "map")

_RATE_WORDS = {
    *("accuracy", "acc", "top1", "top5", "f1", "precision", "recall", "iou", "miou"),
    *("auroc", "auc", "dice", "jaccard", "delta1", "delta2", "delta3"),
}
#: Metrics of a task of one's own that are no shares, and better the higher they are.
_HIGHER_WORDS = {"kappa", "mcc", "pearson", "psnr", "r2", "spearman", "ssim"}
_BASELINE_NAMES = {
    "chance": "chance",
    "majority": "majority class",
    "mean_depth": "mean depth",
    "mean_map": "mean depth map",
    "mode_map": "usual class of each place",
}


def is_rate(metric: str) -> bool:
    """Whether a metric is a share in [0, 1], which reads best in per cent."""
    words = re.split(r"[/_]", metric.lower())
    # `test/map_50` is a mean average precision, `mean_map` a baseline of depth.
    first = metric.lower().rpartition("/")[2].partition("_")[0]
    return bool(_RATE_WORDS & set(words)) or first in ("map", "mar")


def is_better_higher(metric: str) -> bool:
    """Whether more of a metric is better, by its name; a name that is not known is an error's."""
    return is_rate(metric) or bool(_HIGHER_WORDS & set(re.split(r"[/_]", metric.lower())))


def named_metric(metric: str) -> str:
    """The metric's name, with "(lower is better)" if that applies."""
    return metric + ("" if is_better_higher(metric) else " (lower is better)")


def format_metric(metric: str, value: float | None) -> str:
    """A value for display: 71.04 % for a rate, else four digits, – for None."""
    if value is None:
        return "–"
    return f"{value:.2%}".replace("%", " %") if is_rate(metric) else format_number(value, digits=4)


def format_spread(metric: str, width: float | None) -> str:
    """A deviation or half an interval, without a unit: in percentage points for a rate."""
    if width is None:
        return "–"
    return f"{100 * width:.2f}" if is_rate(metric) else format_number(width, digits=3)


def format_p(p: float | None) -> str:
    """A p-value for display, – for None."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def format_number(value: float, *, digits: int) -> str:
    """A number with `digits` significant digits, trailing zeros included; integers plain."""
    if float(value).is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def duration(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def baseline_name(kind: str) -> str:
    """Display name of a kind of baseline, such as `mean_map`; unknown ones get spaces for `_`."""
    return _BASELINE_NAMES.get(kind, kind.replace("_", " "))


def short_name(name: str, length: int) -> str:
    """A long name as its first synonym ("goldfish, Carassius auratus"), then cut."""
    if len(name) > length:
        name = name.partition(",")[0]
    return name if len(name) <= length else name[: length - 1] + "…"
