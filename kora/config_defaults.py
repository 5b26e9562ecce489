"""Configs and records of earlier versions, with the options that came later at their defaults.

An option that is added keeps by its default what was done before it was there, so a config without
it and a config that names its default are of one run, and a record without it of one strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

__all__ = ["with_defaults"]


def with_defaults(config: Any) -> Any:
    """A copy of a config or record in plain types, each of its classes with all options.

    Options whose default is no plain value, and classes that cannot be imported, stay as they are.
    """
    if isinstance(config, list | tuple):
        return [with_defaults(item) for item in config]
    if not isinstance(config, Mapping):
        return config
    made = {key: with_defaults(value) for key, value in config.items()}
    if isinstance(made.get("class_path"), str) and isinstance(made.get("init_args"), dict):
        made["init_args"] = {**_defaults(made["class_path"]), **made["init_args"]}
    return made


@cache
def _defaults(class_path: str) -> dict[str, Any]:
    """Plain values of the options that a class leaves open, by name."""
    from jsonargparse import ArgumentParser

    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser()
    try:
        parser.add_class_arguments(getattr(import_module(module), name))
    except (ImportError, AttributeError, TypeError, ValueError):
        return {}
    defaults = vars(parser.get_defaults())
    return {key: with_defaults(value) for key, value in defaults.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
