"""The state of Lightning's loops, taken after every step and therefore quickly."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any

from lightning.pytorch.loops.loop import _Loop
from lightning.pytorch.loops.progress import _BaseProgress

__all__ = ["loop_state"]


def loop_state(loop: _Loop, prefix: str = "") -> dict[str, Any]:
    """What `loop.state_dict(prefix=prefix)` gives, without deep copies of single numbers.

    Lightning copies every counter with `dataclasses.asdict`, which was most of that call's time.
    """
    found: dict[str, Any] = {f"{prefix}state_dict": loop.on_save_checkpoint()}
    for name, part in vars(loop).items():
        if isinstance(part, _BaseProgress):
            found[prefix + name] = _numbers(part)
        elif isinstance(part, _Loop):
            found |= loop_state(part, f"{prefix}{name}.")
    return found


def _numbers(progress: Any) -> dict[str, Any]:
    return {
        name: _numbers(value) if is_dataclass(value) else value
        for name, value in vars(progress).items()
    }
