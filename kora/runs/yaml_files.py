"""Read YAML files; every error is one line that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["LOADER", "not_utf8", "read_yaml"]

#: Reads only plain types. libyaml's loader, if PyYAML has it, takes a tenth of the time.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: Largest number of nodes, with aliases expanded: more are a mistake, or an attack.
_MOST_NODES = 100_000


def read_yaml(path: str | Path) -> Any:
    """The content of a file.

    Raises:
        ValueError: It cannot be read, is not UTF-8 or not YAML, repeats a key, or has too many
            values once its aliases are expanded.
    """
    try:
        loader = LOADER(Path(path).read_text(encoding="utf-8"))
        node = loader.get_single_node()
        twice: list[str] = []
        nodes = 0 if node is None else _count(node, {}, twice)
        if not twice and nodes <= _MOST_NODES:
            return None if node is None else loader.construct_document(node)
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path, error)) from error
    except (OSError, yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as YAML ({reason}). Correct it.") from error
    if twice:
        raise ValueError(f"{path}: {twice[0]}, and only one would count. Leave one out.")
    raise ValueError(
        f"{path}: holds more than {_MOST_NODES} values once its aliases (*name) are expanded. "
        "Write what they stand for, or leave them out."
    )


def _count(node: yaml.Node, known: dict[int, int], twice: list[str]) -> int:
    """Number of nodes, this one and those below; adds repeated keys of tables to `twice`."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = _MOST_NODES + 1  # an alias of a node that contains it never ends
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            parts += (key, value)
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and lines.setdefault(key.value, line) != line:
                first = lines[key.value]
                twice.append(f"'{key.value}' is in line {first} and again in line {line}")
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    known[id(node)] = 1 + sum(_count(part, known, twice) for part in parts)
    return known[id(node)]


def not_utf8(path: str | Path, error: UnicodeDecodeError) -> str:
    """The message for a text file that is not UTF-8."""
    return f"{path}: is not UTF-8, from byte {error.start} on. Save it as UTF-8."
