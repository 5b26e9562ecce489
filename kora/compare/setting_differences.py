"""Settings in which the groups of a comparison differ, and which of these concern training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kora.compare.grouping import brief
from kora.runs.config import flat, with_defaults
from kora.runs.results import Run

__all__ = ["SettingRow", "setting_differences", "training_note"]

SettingRow = tuple[str, tuple[str, ...]]  # a setting, and its value in each group in their order
ABSENT = "–"
_ADAPTER = "adapter."


def setting_differences(groups: Mapping[str, Sequence[Run]]) -> list[SettingRow]:
    """The settings that differ between groups; – for a group that has no such setting.

    The last row holds arguments that only some strategies have, and on which these agree.
    """
    adapters = [runs[0].result.settings.get("adapter") or {} for runs in groups.values()]
    kinds: dict[Any, set[frozenset[str]]] = {}
    for adapter in adapters:
        options = frozenset(adapter.get("init_args") or {})
        kinds.setdefault(adapter.get("class_path"), set()).add(options)
    if any(len(options) > 1 for options in kinds.values()):  # else no need to import strategies
        adapters = [with_defaults(adapter) for adapter in adapters]
    tables = [
        _settings(adapter, runs[0]) for adapter, runs in zip(adapters, groups.values(), strict=True)
    ]
    rows: list[SettingRow] = []
    own: list[list[str]] = [[] for _ in tables]
    for key in dict.fromkeys(key for table in tables for key in table):
        values = [table[key] for table in tables if key in table]
        if len(set(values)) > 1 or (len(values) < len(tables) and not key.startswith(_ADAPTER)):
            rows.append((key, tuple(table.get(key, ABSENT) for table in tables)))
        elif len(values) < len(tables):
            for table, words in zip(tables, own, strict=True):
                if key in table and table[key] != "null":
                    words.append(f"{key.removeprefix(_ADAPTER)}={table[key]}")
    if any(own):
        rows.append(("adapter's own", tuple(", ".join(words) or ABSENT for words in own)))
    return rows


def training_note(groups: Mapping[str, Sequence[Run]]) -> str | None:
    """A sentence on the settings that differ in training, not in the strategies themselves.

    A fusion reads earlier adapters instead of a source stage; that is part of its strategy.
    """
    names = list(groups)
    found: dict[str, dict[str, list[str]]] = {}
    for name, (first, *_) in groups.items():
        arguments = (first.result.settings.get("adapter") or {}).get("init_args") or {}
        for key, value in _training(first).items():
            if key != "source" or "sources" not in arguments:
                found.setdefault(key, {}).setdefault(value, []).append(name)
    parts = [
        f"{key} is "
        + ", ".join(f"{value} in {_all_of(who, names)}" for value, who in _rarest_first(values))
        for key, values in found.items()
        if len(values) > 1
    ]
    return f"Training settings that differ: {'; '.join(parts)}." if parts else None


def _rarest_first(values: Mapping[str, list[str]]) -> list[tuple[str, list[str]]]:
    return sorted(values.items(), key=lambda item: len(item[1]))


def _all_of(who: Sequence[str], names: Sequence[str]) -> str:
    if len(who) > 2 and len(who) == len(names) - 1:
        return "all others"
    return " and ".join(who)


def _settings(adapter: Mapping[str, Any], run: Run) -> dict[str, str]:
    found = {}
    if "class_path" in adapter:
        found["adapter"] = str(adapter["class_path"]).rpartition(".")[2]
    found |= {f"{_ADAPTER}{k}": _said(v) for k, v in (adapter.get("init_args") or {}).items()}
    return found | _training(run)


def _training(run: Run) -> dict[str, str]:
    found = {}
    for key, value in flat(run.result.settings.get("training", {})).items():
        named = key.removesuffix(".class_path")  # an object's class goes under the object's name
        found[named] = _said(value) if named == key else str(value).rpartition(".")[2]
    if "source" in found and run.result.source is None:  # nothing to carry over: it did not run
        found["source"] = "null"
    return found


def _said(value: Any) -> str:
    """A value as a config writes it."""
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else brief(value)
    )
