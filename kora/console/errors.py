"""One-line error messages with a suggestion, made from jsonargparse's nested ones and others."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable

__all__ = ["explain", "first_line", "hint"]

_NOISE = re.compile(
    r"^(- )?(Expected a <class 'NoneType'>|Does not validate against|Subtypes:|Errors:"
    r"|Given value|Problem with given class_path|Parser key|Expected a path but)"
)
_UNKNOWN = (
    r"Option '([^']+)' is not accepted",
    r"does not accept option '([^']+)'",
    r"Key '([^']+)' is not expected",
    r"[Uu]nrecognized arguments: (?:--)?(\S+)",
    r"Expected a dot import path string: (\S+)",
    r"module '[\w.]+' has no attribute '(\w+)'",
)


#: New names of moved options of KoRA's nodes, by an option of the class that had them.
_MOVED = {
    "node_form": {
        **{
            name: f"node_form.{name}"
            for name in ("rank", "inject", "pool", "sites", "blocks", "dropout")
        },
        "node_sites": "node_form.sites",
        "node_blocks": "node_form.blocks",
    },
    "matrix": {
        "init": "matrix.init",
        "direct": "matrix: FactoredMatrix",
        "shared": "matrix: SharedMatrix",
    },
}
#: Classes that old configs and runs may name. docs/research/composition.md, "Removed", says why.
_REMOVED = ("KAN", "DepthAverage", "OrthogonalMatrix", "DecorrelatedMatrix", "GatedKoRA")
_WHY_REMOVED = "It was removed: no measurement speaks for it (docs/research/composition.md)."


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if there is no message."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def hint(name: str, known: Iterable[str]) -> str:
    """A space and a sentence that suggests the nearest known name; "" if none is near.

    Of a class that was removed, the sentence says that.
    """
    if name in _REMOVED:
        return f" {_WHY_REMOVED}"
    near = _close(name, known)
    return "" if near is None else f" Did you mean '{near}'?"


def explain(message: str, known_keys: Iterable[str]) -> str:
    """One line for a parser's error message; `known_keys` are the options of that parser.

    Keeps jsonargparse's words, with the place in the config before and the nearest known name
    after them.
    """
    # The parser names a group and its option; together they are the key in the config.
    text = re.sub(r"(Group '([\w.]+)' does not accept option ')", r"\1\2.", str(message))
    denied = re.search(r"Importing '([\w.]+)' is not allowed", text)
    if denied is not None:
        return _of_denied(denied.group(1))
    place = ".".join(re.findall(r"Parser key \"([^\"]+)\"", text))
    reason = _deepest(text)
    given = re.search(r"Given value: (.+)", text)
    if given and given.group(1) not in reason and not given.group(1).startswith("NestedArg"):
        reason = f"{reason}, found '{given.group(1)}'"
    parts = [f"{place}: {reason}" if place and not _names(reason, place) else reason]
    unknown = next(filter(None, (re.search(pattern, text) for pattern in _UNKNOWN)), None)
    if unknown is not None:
        name = re.split(r"[=\s]", unknown.group(1))[0].strip("'\"")
        of_class = "dot import path" in text or "has no attribute" in text
        candidates = _subclass_names(text) if of_class else list(known_keys)
        if of_class:
            name = name.rpartition(".")[2]
        near = _of_a_class(text, name) or _nearest(name, candidates)
        moved = _moved(name, candidates)
        if name in _REMOVED:
            parts.append(_WHY_REMOVED)
        elif moved is not None:
            parts.append(f"It is {moved} now.")
        elif near is not None:
            parts.append(f"Did you mean '{near}'?")
        elif candidates and len(candidates) < 20:
            parts.append(f"Known: {', '.join(sorted(candidates))}.")
        elif re.fullmatch(r"Option '\w+' is not accepted", text):  # the class is not named
            option = "--model.optimizer AdamW --model.optimizer.lr 1e-3"
            parts.append(f"It may be of a class; then name the class first: {option}.")
    if "arguments are required" in reason:
        parts.append("Give a config that sets them: --config configs/quickstart.yaml")
    if "collections.abc.Sequence" in reason:
        parts.append("Write a list: [NAME, NAME]")
    if "abstract" in reason:
        parts.append("Name its class first.")
    return " ".join(part if part.endswith((".", "?")) else f"{part}." for part in parts)


def _moved(name: str, candidates: Iterable[str]) -> str | None:
    """The new name of a moved option, for a class whose options are `candidates`."""
    found = (table.get(name) for mark, table in _MOVED.items() if mark in candidates)
    return next(filter(None, found), None)


def _of_a_class(text: str, name: str) -> str | None:
    """The key of every class in a config (`class_path`, `init_args`) that a name is near to."""
    if f"Option '{name}' is not accepted" not in text:
        return None
    keys = ("class_path", "init_args")
    return next(iter(difflib.get_close_matches(name.partition(".")[0], keys, 1, 0.8)), None)


def _of_denied(path: str) -> str:
    return (
        f"it names {path}, but files of a run may name only classes of KoRA. If the run is yours, "
        f"or you trust that module: --trust {path.rpartition('.')[0]}."
    )


def _names(reason: str, place: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(place)}(?!\w)", reason) is not None


def _deepest(text: str) -> str:
    """The most indented lines that are not noise: one for each accepted type."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines[0].startswith("Problems parsing config"):
        return " ".join(line.strip() for line in lines)
    kept = [line for line in lines if not _NOISE.match(line.strip())]
    if not kept:
        return " ".join(line.strip() for line in lines[:2])
    depth = max(len(line) - len(line.lstrip()) for line in kept)
    innermost = [line for line in kept if len(line) - len(line.lstrip()) == depth]
    deepest = [line.strip().removeprefix("- ") for line in innermost]
    deepest = [line for line in deepest if not line.startswith("Expected a path")] or deepest
    plain = [re.sub(r"an? <class '([\w.]+)'>", r"\1", line) for line in deepest]
    plain = [re.sub(r"a typing\.Literal\[(.*)\]", r"one of \1", line) for line in plain]
    wanted = [line.removeprefix("Expected ") for line in dict.fromkeys(plain)]
    return ("expected " if plain != wanted else "") + " or ".join(wanted)


def _close(name: str, known: Iterable[str]) -> str | None:
    """The nearest name, ignoring case; None if none is near."""
    lowered = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=1)
    return lowered[near[0]] if near else None


def _nearest(name: str, candidates: list[str]) -> str | None:
    """The nearest candidate, ignoring case; dotted names part by part."""
    near = _close(name, candidates)
    if near is not None:
        return near
    head, dot, rest = name.partition(".")
    heads = sorted({candidate.partition(".")[0] for candidate in candidates})
    close = difflib.get_close_matches(head, heads, n=1) if dot and head not in heads else []
    return f"{close[0]}.{rest}" if close else None


def _subclass_names(text: str) -> list[str]:
    """Short names that the parser accepts for the innermost class in the message."""
    listed = re.findall(r"Subtypes: \[([^\]]*)\]", text)
    named = re.findall(r"'([\w.]+)'", listed[-1]) if listed else []
    bases = [path for path in named if path != "NoneType"]
    bases = bases or ["torch.optim.Optimizer"]  # the one class that is typed as a callable
    module, _, name = bases[-1].rpartition(".")
    base = getattr(sys.modules.get(module), name, None)  # a value may hold any text: no import
    queue: list[type] = [base] if isinstance(base, type) else []
    found: set[str] = set()
    while queue:
        below: list[type] = queue.pop().__subclasses__()
        for kind in below:
            queue.append(kind)
            if kind.__module__.split(".")[0] in ("kora", "datamodules", "torch"):
                found.add(kind.__name__)
    return sorted(name for name in found if not name.startswith("_"))
