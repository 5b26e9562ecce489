"""From jsonargparse's nested messages to the one line that matters, with a suggestion."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from importlib import import_module
from typing import Any

__all__ = ["explain"]

_NOISE = re.compile(
    r"^(- )?(Expected a <class 'NoneType'>|Does not validate against|Subtypes:|Errors:"
    r"|Given value|Problem with given class_path|Parser key|Expected a path but)"
)


def explain(message: str, known_keys: Iterable[str]) -> str:
    """One line for a parser's error message; `known_keys` are the options of the command.

    What jsonargparse says stays in the line; in front comes the place in the config, behind it the
    nearest known name.
    """
    text = str(message)
    place = ".".join(key for key in re.findall(r"Parser key \"([^\"]+)\"", text) if key)
    reason = _deepest(text)
    wrong = (
        re.search(r"Option '([^']+)' is not accepted", text)
        or re.search(r"Key '([^']+)' is not expected", text)
        or re.search(r"[Uu]nrecognized arguments: (?:--)?(\S+)", text)
        or re.search(r"Expected a dot import path string: (\S+)", text)
        or re.search(r"No action for key \"([^\"]+)\"", text)
        or re.search(r"Expected a valid subclass.*?[Gg]iven value: '?([\w.]+)", text, re.DOTALL)
    )
    parts = [f"{place}: {reason}" if place and place not in reason else reason]
    if wrong:
        name = wrong.group(1).split("=")[0].strip("'\"")
        candidates = _candidates(text, name, known_keys)
        near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
        near = near or difflib.get_close_matches(
            name.lower(), [c.lower() for c in candidates], n=1, cutoff=0.5
        )
        if near:
            original = next(c for c in candidates if c.lower() == near[0].lower())
            parts.append(f"Did you mean '{original}'?")
        elif candidates and len(candidates) < 20:
            parts.append(f"Known: {', '.join(sorted(candidates))}.")
    return " ".join(part if part.endswith((".", "?")) else f"{part}." for part in parts)


def _deepest(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    kept = [line for line in lines if not _NOISE.match(line.strip())]
    if not kept:
        return " ".join(line.strip() for line in lines[:2])
    deepest = max(kept, key=lambda line: len(line) - len(line.lstrip()))
    return deepest.strip().removeprefix("- ")


def _candidates(text: str, name: str, known_keys: Iterable[str]) -> list[str]:
    if "dot import path" in text or "valid subclass" in text:
        bases = re.findall(r"<class '([\w.]+)'>", text)
        bases = [base for base in bases if base != "NoneType"]
        return _subclass_names(bases[-1]) if bases else []
    classes = re.findall(r"class_path '([\w.]+)'", text)
    if classes and (target := _load(classes[-1])) is not None:
        return _option_names(target)
    keys = list(known_keys)
    head = name.rpartition(".")[0]
    siblings = [key for key in keys if head and key.startswith(f"{head}.")]
    return siblings or keys


def _option_names(target: type) -> list[str]:
    """Constructor arguments of a class and, where it passes on **kwargs, of its bases."""
    names: list[str] = []
    for kind in target.__mro__:
        if "__init__" not in vars(kind):
            continue
        parameters = inspect.signature(vars(kind)["__init__"]).parameters
        names += [p for p in parameters if p not in ("self", "args", "kwargs")]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


def _load(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None


def _subclass_names(path: str) -> list[str]:
    base = _load(path)
    if base is None:
        return []
    found: set[str] = set()
    queue = [base]
    while queue:
        for kind in queue.pop().__subclasses__():
            queue.append(kind)
            if kind.__module__.split(".")[0] in ("kora", "datamodules"):
                found.add(kind.__name__)
    return sorted(name for name in found if not name.startswith("_"))
