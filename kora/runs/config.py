"""Configs and records of earlier versions: later options at their defaults, classes where they are.

An option that is added keeps by its default what was done before it was there, so a config without
it and a config that names its default are of one run, and a record without it of one strategy.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

__all__ = ["MOVED", "flat", "with_defaults"]

#: Classes that configs of earlier versions name by another module.
MOVED = {
    "kora.backbones.Backbone": "kora.backbone.vit.Backbone",
    "kora.sharding.ShardedBackbone": "kora.backbone.sharding.ShardedBackbone",
}


def with_defaults(config: Any) -> Any:
    """A copy of a config or record in plain types, each of its classes with all options.

    Options whose default is no plain value stay as they are, and so do classes that are neither of
    this project nor loaded already: a file of somebody else must not choose what is imported.
    """
    if isinstance(config, list | tuple):
        return [with_defaults(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    made = {key: with_defaults(value) for key, value in config.items()}
    if isinstance(made.get("class_path"), str):
        made["class_path"] = MOVED.get(made["class_path"], made["class_path"])
    if isinstance(made.get("class_path"), str) and isinstance(made.get("init_args"), dict):
        made["init_args"] = {**_defaults(made["class_path"]), **made["init_args"]}
    return made


def flat(value: Mapping[str, Any], prefix: str = "", *, objects: bool = False) -> dict[str, Any]:
    """The leaves of a config or record by their dotted names, as one would type them.

    Args:
        value: In plain types. `init_args` is no part of a name.
        prefix: Before each name.
        objects: Also what has a class, whole and by its own name.
    """
    found: dict[str, Any] = {}
    for name, item in value.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}".lstrip(".")
        if isinstance(item, Mapping):
            found |= {key: item} if objects and "class_path" in item else {}
            found |= flat(item, key, objects=objects)
        elif name != "init_args":
            found[key] = item
    return found


def _defaults(class_path: str) -> dict[str, Any]:
    """Plain values of the options that a class leaves open, by name; nothing of unknown classes."""
    from kora.runs.trust import OURS  # brings jsonargparse, which a comparison need not load

    module, _, name = class_path.rpartition(".")
    try:
        found = import_module(module) if module in OURS else sys.modules[module]
        return _of_class(vars(found)[name])
    except (ImportError, KeyError, AttributeError, TypeError, ValueError):
        return {}


@cache
def _of_class(kind: type) -> dict[str, Any]:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser()
    parser.add_class_arguments(kind)
    defaults = vars(parser.get_defaults())
    return {key: with_defaults(value) for key, value in defaults.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
