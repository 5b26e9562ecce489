"""Numbers in words, as the terminal and the page of `kora adapt` show them."""

__all__ = ["LEVEL", "duration", "percent"]

#: A lead is called one if chance gives it less often than this.
LEVEL = 0.05


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """A duration in words."""
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"
