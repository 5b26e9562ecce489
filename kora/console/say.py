"""Print a line of a command once, however many processes run."""

from __future__ import annotations

import os
import sys

from kora.console.tables import visible

__all__ = ["RANKS", "say"]

#: Where Lightning reads the rank of a process, the first that is set.
RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")


def say(text: str, *, aside: bool = False) -> None:
    """Print a line on the first rank; with `aside` to stderr, away from what programs read."""
    if _rank() == 0:
        print(f"kora: {visible(text)}", file=sys.stderr if aside else sys.stdout, flush=True)


def _rank() -> int:
    """The rank of this process: Lightning's own if it runs, without importing it if not."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    if lightning is not None:
        return int(lightning.rank_zero_only.rank)
    return int(next((os.environ[name] for name in RANKS if name in os.environ), 0))
