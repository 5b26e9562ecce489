"""Arguments of strategies, composers and readouts: read back as plain types, and checked."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Sequence
from typing import Any

from torch import nn

__all__ = [
    "arguments_of",
    "describe",
    "require_choice",
    "require_effect",
    "require_positive",
    "require_probability",
]


def describe(obj: Any) -> dict[str, Any]:
    """Class path and constructor arguments of a strategy, composer or readout, as plain types."""
    kind = type(obj)
    module = kind.__module__
    package = sys.modules["kora.adapters"]
    if getattr(package, kind.__qualname__, None) is kind:  # the short path, if there is one
        module = "kora.adapters"
    arguments = {k: _plain(v) for k, v in arguments_of(obj).items()}
    return {"class_path": f"{module}.{kind.__qualname__}", "init_args": arguments}


def require_probability(strategy: str, **settings: float) -> None:
    """Refuse probabilities outside [0, 1): with 1, nothing would be left."""
    for key, value in settings.items():
        if not 0 <= value < 1:
            raise ValueError(f"{strategy}: {key}={value}, expected a probability in [0, 1).")


def require_positive(strategy: str, **settings: int) -> None:
    """Refuse sizes below one: they would leave nothing to train."""
    for key, value in settings.items():
        if value < 1:
            raise ValueError(
                f"{strategy}: {key}={value}, expected 1 or more. For no adapter at all, use "
                "LinearProbe."
            )


def require_effect(strategy: str, alpha: float) -> None:
    """Refuse an alpha of zero: it would train tensors that never change the output."""
    if not math.isfinite(alpha):
        raise ValueError(f"{strategy}: alpha={alpha}, expected a finite number other than 0.")
    if alpha == 0:
        raise ValueError(
            f"{strategy}: alpha=0 multiplies the adapter away. For no adapter, use LinearProbe."
        )


def require_choice(owner: str, key: str, value: str, choices: Sequence[str]) -> None:
    """Refuse an unknown choice: Python does not check Literals by itself."""
    if value not in choices:
        raise ValueError(f"{owner}: {key}='{value}', expected one of {', '.join(choices)}.")


def arguments_of(obj: Any) -> dict[str, Any]:
    """The constructor arguments of an object, read from the attributes of the same names."""
    parameters = inspect.signature(type(obj)).parameters.values()
    named = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return {name: getattr(obj, name) for name in named}


def _plain(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return describe(value)
    return list(value) if isinstance(value, tuple | list) else value
