"""Whose normalisation a source stage has: its own where its config names one, else the job's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kora.runs.yaml_files import read_yaml

__all__ = ["keep_normalisation"]

_KEYS = ("mean", "std")


def keep_normalisation(overrides: dict[str, Any], source: str) -> None:
    """Take mean and std out of what a job puts over a source config that names its own.

    The published notebook normalises each of its two data sets in another way.

    Args:
        overrides: Resolved `init_args` of the model, with `backbone`; changed in place.
        source: Path of the source config.
    """
    named: Any = read_yaml(source)
    for key in ("model", "init_args", "backbone"):
        named = named.get(key) if isinstance(named, Mapping) else None
    if not isinstance(named, Mapping):
        return
    named = named.get("init_args", named)
    backbone = overrides["backbone"]
    taken = {k: v for k, v in backbone["init_args"].items() if k not in _KEYS or k not in named}
    overrides["backbone"] = {**backbone, "init_args": taken}
