"""Mistyped names in a config or among the options, told before anything heavy is imported.

Only what has a near name is told here. The parser checks everything else, and all that is deeper.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kora.console.errors import hint
from kora.runs.yaml_files import read_yaml

__all__ = ["TOP", "refuse_mistyped"]

#: The sections and options of a config.
TOP = {
    "allow_degenerate", "ckpt_path", "data", "experiment", "leave_out_test", "model", "pictures",
    "resume", "runs_dir", "save", "seed_everything", "source", "trainer", "wandb", "weights_only",
}  # fmt: skip
#: Source of the classes whose options a section holds, below the folder of a package.
_SOURCE = {
    "model": ("kora", "tasks/*.py"),
    "data": ("datamodules", "**/*.py"),
    "trainer": ("lightning", "pytorch/trainer/trainer.py"),
}


def refuse_mistyped(args: Sequence[str]) -> None:
    """Check the options of `kora fit`, and the configs that they name.

    Raises:
        ValueError: A section, an option of a section or a strategy is unknown, and another name is
            near.
    """
    files = [
        value
        for option, value in _words(args)
        if option in ("--config", "-c") and Path(value).is_file()
    ]
    found = [(f"{file}: ", key, value) for file in files for key, value in _keys(file)]
    found += [
        ("--", option.removeprefix("--"), value)
        for option, value in _words(args)
        if option.startswith("--") and "." in option
    ]
    foreign = {
        key.split(".")[0]
        for _, key, value in found
        if key in ("model", "data", "model.class_path", "data.class_path")
        and isinstance(value, str)
        and not re.match(r"(kora\.|datamodules\.|\w+$)", value)
    }
    for where, key, value in found:
        section, *rest = key.replace(".init_args.", ".").split(".")
        of_adapter = re.fullmatch(r"model\.(init_args\.)?adapter(\.class_path)?", key)
        if section not in TOP:
            _refuse(where, section, TOP, after="".join(f".{part}" for part in rest))
        elif rest and section in _SOURCE and section not in foreign:
            _refuse(where, rest[0], _options_of(section), before=f"{section}.")
        if of_adapter and isinstance(value, str) and value.isidentifier():
            _refuse(f"{where}{key}: ", value, _classes())


def _refuse(where: str, name: str, known: set[str], *, before: str = "", after: str = "") -> None:
    near = "" if name in known else hint(name, known)
    if near:
        near = near.replace(" '", f" '{before}").replace("'?", f"{after}'?")
        raise ValueError(f"{where}{before}{name}: there is no such name.{near}")


def _words(args: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each option, with its value if it has one."""
    for word, after in zip(args, [*args, ""][1:], strict=True):
        if word.startswith("-"):
            option, equals, value = word.partition("=")
            yield option.removesuffix("+"), value if equals else after


def _keys(file: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys of a config, down to the options of the sections, and of the adapter."""
    config = read_yaml(Path(file))
    if isinstance(config, Mapping):
        yield from _below("", config)


def _below(path: str, part: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in part.items():
        key = f"{path}{name}"
        yield key, value
        deep = key in _SOURCE or re.fullmatch(r"(model|data)\.init_args", key) is not None
        if isinstance(value, Mapping) and (deep or key.endswith(".adapter")):
            yield from _below(f"{key}.", value)


@cache
def _options_of(section: str) -> set[str]:
    """The options of a section: all that its classes name in their source with a type."""
    found = re.findall(r"^\s+(\w+):", _source(*_SOURCE[section]), re.MULTILINE)
    return {"class_path", "init_args", "help", *found}


@cache
def _classes() -> set[str]:
    """The classes in the folder of strategies."""
    return set(re.findall(r"^class (\w+)", _source("kora", "adapters/**/*.py"), re.MULTILINE))


def _source(package: str, files: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    (folder,) = map(Path, spec.submodule_search_locations or ())
    return "\n".join(file.read_text(encoding="utf-8") for file in folder.glob(files))
