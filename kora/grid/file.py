"""The file of a grid: which options and seeds are combined, on top of which configs.

A grid is a YAML file:

    base: configs/x.yaml             # or a list; later files win
    vary:                            # every combination of these
      config: [configs/adapters/lora.yaml, configs/adapters/kora.yaml]
      model.head_lr: [0.01, 0.001]
    seeds: [0, 1, 2]
    set: {experiment: x_head_lr}     # for all runs

Groups of files can have names, and a value can be several files that belong together:

    vary:
      config.data: [configs/x.yaml, [configs/y.yaml, configs/trainer/gpu.yaml]]
      config.strategy: [configs/adapters/lora.yaml, configs/adapters/kora.yaml]

The files of a run are those of `base` and then one value of each group, in this order.
"""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from kora.console.errors import hint
from kora.runs.config import plain_name
from kora.runs.config_files import find_named_in
from kora.runs.yaml_files import read_yaml

__all__ = [
    "LAST_SEED",
    "SEED_OPTION",
    "Grid",
    "Job",
    "as_text",
    "file_name",
    "grid_of",
    "is_group",
    "read_content",
    "read_grid",
    "table",
]

_OPTIONS = "dotted option names"
_KEYS = ("base", "vary", "seeds", "set")
LAST_SEED = 2**32 - 1
#: The last argument of a job begins with this.
SEED_OPTION = "--seed_everything="
_TUNE = "tune"  # of `kora tune`, see kora.tune.file
_FILES = "config"  # `config` or `config.NAME`: keys of `vary` whose values are files


class Job(NamedTuple):
    """One run: a name for readers, and the arguments of `kora fit`.

    `kind` is the name without the seed.
    """

    name: str
    args: tuple[str, ...]
    kind: str = ""

    @property
    def command(self) -> str:
        return shlex.join(("kora", "fit", *self.args))


@dataclass(frozen=True)
class Grid:
    """A grid as its file describes it."""

    base: tuple[str, ...]
    vary: Mapping[str, tuple[Any, ...]]
    seeds: tuple[int, ...]
    options: Mapping[str, Any]

    def jobs(self) -> list[Job]:
        """Every combination with every seed, seeds innermost. Files come before options."""
        jobs = []
        for values in itertools.product(*self.vary.values()):
            chosen = dict(zip(self.vary, values, strict=True))
            words = [self._word(key, value) for key, value in chosen.items()]
            kind = ", ".join(sorted(words, key=lambda word: "=" in word))  # files come first
            files = [*self.base]
            for key in filter(is_group, list(chosen)):
                files += _as_list(chosen.pop(key))
            options = {**self.options, **chosen}
            for seed in self.seeds:
                args = [part for file in files for part in ("--config", file)]
                args += [f"--{key}={as_text(value)}" for key, value in options.items()]
                name = f"{kind}, seed {seed}" if kind else f"seed {seed}"
                jobs.append(Job(name, (*args, f"{SEED_OPTION}{seed}"), kind))
        return jobs

    def _word(self, key: str, value: Any) -> str:
        """A short text that distinguishes a value from the others of its key."""
        if not is_group(key):
            return f"{key.rpartition('.')[2]}={as_text(value)}"
        files = [file for other in self.vary[key] for file in _as_list(other)]
        for parts in range(1, 1 + max(len(Path(file).parts) for file in files)):
            names = [_end(other, parts) for other in self.vary[key]]
            if names.count(_end(value, parts)) == 1:
                return _end(value, parts)
        return "+".join(_as_list(value))


def is_group(key: str) -> bool:
    """Whether the values of a key of `vary` are files."""
    return key == _FILES or key.startswith(f"{_FILES}.")


def file_name(text: str) -> str:
    """A readable name as the name of a file."""
    return "".join(c if c.isalnum() or c in "=.+-" else "_" for c in text.replace(", ", "-"))


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LAST_SEED


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _end(value: Any, parts: int) -> str:
    """Names of files, each with the last `parts` parts of its path.

    A file that `kora tune` wrote for the others has their names, so it is left out.
    """
    paths = [Path(file).with_suffix("") for file in _as_list(value)]
    if len(paths) > 1 and paths[-1].name == "+".join(path.name for path in paths[:-1]):
        paths.pop()
    return "+".join("/".join(path.parts[-parts:]) for path in paths)


def read_grid(path: Path, overrides: Sequence[str] = ()) -> Grid:
    """A grid file, with `key=value` overrides of its `set`.

    Raises:
        ValueError: the file is missing, is not a grid, or has a key or value that cannot be used.
    """
    content = read_content(path)
    if _TUNE in content:
        raise ValueError(
            f"{path}: has a '{_TUNE}' part, so its settings are still to be found. Find them with "
            f"kora tune --config {path}, which writes the grid to run."
        )
    return grid_of(path, content, overrides)


def read_content(path: Path) -> dict[str, Any]:
    """The content of a grid file, by its keys.

    Raises:
        ValueError: the file is missing, or is not a table.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a table with the keys {', '.join(_KEYS)}.")
    return content


def grid_of(path: Path, content: dict[str, Any], overrides: Sequence[str] = ()) -> Grid:
    """The grid that the content of a file describes; see `read_grid`."""
    for key in content:
        if key not in _KEYS:
            known = f"a grid has {', '.join(_KEYS)}.{hint(str(key), _KEYS)}"
            raise ValueError(f"{path}: unknown key '{key}'; {known}")
    vary = {
        key: _groups(path, f"vary.{key}", values)
        if is_group(key)
        else _values(path, f"vary.{key}", values)
        for key, values in table(path, "vary", content.get("vary") or {}, of=_OPTIONS).items()
    }
    base = content.get("base")
    if base is None and any(map(is_group, vary)):
        base = []  # the groups name all files
    else:
        base = _files(path, "base", [base] if isinstance(base, str) else base)
    seeds = _values(path, "seeds", content.get("seeds", [0]))
    wrong = [seed for seed in seeds if not _is_seed(seed)]
    if wrong:
        raise ValueError(
            f"{path}: seeds has {wrong[0]!r}; expected whole numbers from 0 to {LAST_SEED}."
        )
    options = table(path, "set", content.get("set") or {}, of=_OPTIONS)
    for text in overrides:
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ValueError(f"--set {text}: expected key=value, such as trainer.max_epochs=1.")
        options[key] = value
    _refuse(path, options, ("seed_everything", "seeds"), "list the seeds under 'seeds'")
    _refuse(path, vary, ("seed_everything", "seeds"), "list the seeds under 'seeds'")
    groups = tuple(filter(is_group, options))
    _refuse(path, options, groups, "list files that all runs take under 'base'")
    varied = [plain_name(key) for key in vary]
    twice = [key for n, key in enumerate(vary) if varied[n] in varied[:n]]
    _refuse(path, vary, twice, "it is there twice, with and without init_args")
    both = [key for key in options if plain_name(key) in varied]
    _refuse(path, options, both, "it is under 'vary' too, and each would undo the other")
    return Grid(tuple(base), vary, seeds, options)


def table(path: Path, key: str, value: Any, *, of: str = "names") -> dict[str, Any]:
    """The value of a key, which must be a table.

    Raises:
        ValueError: It is not a table.
    """
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{path}: {key} is {value!r}; expected a table of {of}.")
    return dict(value)


def _values(path: Path, key: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, list) or not values:
        raise ValueError(f"{path}: {key} is {values!r}; expected a list with at least one value.")
    texts = [as_text(value) for value in values]
    twice = next((text for text in texts if texts.count(text) > 1), None)
    if twice is not None:
        raise ValueError(f"{path}: {key} has {twice} twice. Leave one out.")
    return tuple(values)


def _files(path: Path, key: str, values: Any) -> tuple[str, ...]:
    if values is None:
        raise ValueError(f"{path}: {key} is missing. Name the config that all runs start from.")
    found = find_named_in(path, _values(path, key, values))
    for file in found:
        if not isinstance(file, str) or not Path(file).is_file():
            raise ValueError(
                f"{path}: {key} names {file!r}, which is no file. Name a config, relative to where "
                "you are or to this file."
            )
    return tuple(found)


def _groups(path: Path, key: str, values: Any) -> tuple[Any, ...]:
    """Files, or lists of files that belong together."""
    return tuple(
        list(_files(path, key, value)) if isinstance(value, list) else _files(path, key, [value])[0]
        for value in _values(path, key, values)
    )


def _refuse(path: Path, table: Mapping[str, Any], keys: Sequence[str], why: str) -> None:
    for key in keys:
        if key in table:
            raise ValueError(f"{path}: '{key}' cannot be set here: {why}.")


def as_text(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
