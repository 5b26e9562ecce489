"""The parser of LightningCLI, with errors in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, NoReturn

import yaml
from jsonargparse import get_loader, set_loader, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from kora.backbone.vit import MOST_PIXELS, usual_size
from kora.console.errors import explain
from kora.console.say import say
from kora.runs.config import current
from kora.runs.trust import is_of_a_run
from kora.runs.yaml_files import read_yaml

__all__ = ["KoraParser", "fill_image_size", "of_the_parser", "remember", "remembering"]


class _Memory(NamedTuple):
    """Parsed options of classes, and LightningCLI's attributes for each command."""

    made: dict[str, tuple[KoraParser, Any]]
    commands: dict[str, dict[str, Any]]


#: The memory within `remembering`; None outside.
_memory: ContextVar[_Memory | None] = ContextVar("memory", default=None)
#: jsonargparse's state within a parse, on which the result depends as well.
_STATE = ("lenient_check", "parsing_defaults", "defaults_cache", "validating_defaults",
          "sub_defaults", "load_value_mode")  # fmt: skip


@contextmanager
def remembering() -> Iterator[None]:
    """Within this block, equal options of a class are parsed once, and each parser is built once.

    A config with classes nested three deep parses options some 200 times, 70 of which differ, and
    most classes of a grid's runs have the same options.
    """
    if _memory.get() is not None:
        yield
        return
    before = _memory.set(_Memory({}, {}))
    try:
        yield
    finally:
        _memory.reset(before)


def remember() -> None:
    """Remember in this process, and in its forks, from now on; see `remembering`."""
    _memory.set(_Memory({}, {}))


def of_the_parser(command: str) -> dict[str, Any]:
    """LightningCLI's attributes for the parser of a command; empty if none is remembered."""
    memory = _memory.get()
    return {} if memory is None else memory.commands.setdefault(command, {})


# Lightning turns this on; any config could then have files fetched from anywhere.
set_parsing_settings(config_read_mode_fsspec_enabled=False)


def _load(text: str) -> Any:
    """Load a text as jsonargparse does, and convert it to the form of this version."""
    found = _load_yaml(text)
    if isinstance(found, dict) and isinstance(found.get("source"), str) and KoraParser._file:
        # Here jsonargparse works in the folder of the file.
        next_to_file = Path(KoraParser._file).parent / found["source"]
        here = KoraParser._from
        if (here / next_to_file).is_file() and not (here / found["source"]).is_file():
            found["source"] = str(next_to_file)
    return current(found, _show_new_form) if isinstance(found, dict) else found


def _show_new_form(form: Any) -> None:
    """Show what the user's own file should contain now; files of a run stay as they are."""
    where = KoraParser._file or KoraParser._whole or "the config"
    if not is_of_a_run(Path(where)):
        shown = yaml.safe_dump(form, default_flow_style=True, sort_keys=False, width=10_000)
        line = f"{where}: the options of KoRA's nodes are in node_form now: {shown.strip()}"
        say(line, aside=True)


_load_yaml = get_loader("yaml")
set_loader("yaml", _load, exceptions=(yaml.YAMLError, ValueError))


class KoraParser(LightningArgumentParser):
    """Prints what is wrong in one line, and exits with 2."""

    #: The config file that is parsed now.
    _file: ClassVar[str | None] = None
    #: The folder that its path is relative to.
    _from: ClassVar[Path] = Path()
    #: The file that errors name after it is parsed, while its options are checked with others.
    _whole: ClassVar[str | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Abbreviated options would hide typing errors.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Any = None, namespace: Any = None, **kw: Any) -> Any:  # type: ignore[override]
        """Parse; a `null` for an option two classes deep arrives here as the text `None`."""
        nested = not self.exit_on_error
        if nested and args and len(args) == 1 and args[0].endswith("=None"):
            args = [f"{args[0].removesuffix('None')}null"]
        return super().parse_args(args, namespace, **kw)

    def parse_object(self, obj: Any, namespace: Any = None, *args: Any, **kw: Any) -> Any:
        """Parse the options of a class, or take the result that is remembered."""
        memory = _memory.get()
        if memory is None:
            return super().parse_object(obj, namespace, *args, **kw)
        state = [(var.name, at) for var, at in copy_context().items() if var.name in _STATE]
        key = repr((id(self), obj, namespace, args, kw, sorted(state)))
        if key not in memory.made:  # keep this parser, so that no other gets its id
            memory.made[key] = self, super().parse_object(obj, namespace, *args, **kw).clone()
        return memory.made[key][1].clone()

    def parse_path(self, path: Any, *args: Any, **kw: Any) -> Any:
        """Parse a config file; errors begin with its name."""
        KoraParser._file, KoraParser._from = str(path), Path.cwd()
        try:
            if Path(path).is_file() and read_yaml(path) is None:
                raise ValueError(f"{path}: is empty. Give it settings, or leave it out.")
        except ValueError as error:
            self.error(str(error), error)
        parsed = super().parse_path(path, *args, **kw)
        KoraParser._file = None
        return parsed

    def parse_source(self, path: str, args: list[str]) -> Any:
        """Parse arguments that come from a file; every error names the file."""
        KoraParser._whole = path
        try:
            return self.parse_args(args)
        finally:
            KoraParser._whole = None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the line that matters; the whole listing with KORA_DEBUG=1."""
        if os.environ.get("KORA_DEBUG"):
            super().error(message, ex)
        line, file = explain(message, self._keys()), KoraParser._file or KoraParser._whole
        KoraParser._file = None
        where = "" if file is None or file in line else f"{file}: "
        print(f"kora: error: {where}{line}", file=sys.stderr)
        sys.exit(2)

    def _keys(self) -> list[str]:
        """Options of this parser and of its subcommand."""
        keys = [
            a.dest
            for a in self._actions
            if a.dest.rpartition(".")[2] not in ("help", "config", "defaults")
        ]
        choices = next((a.choices for a in self._actions if a.dest == "subcommand"), None)
        for parser in dict(choices or {}).values():
            keys += parser._keys()
        return keys


def fill_image_size(options: Any) -> None:
    """Set the image size of the data to that of the backbone if the config leaves it out."""
    data, model = options.get("data") or {}, options.get("model") or {}
    own = data.get("init_args") or {}
    backbone = (model.get("init_args") or {}).get("backbone") or {}
    settings = backbone.get("init_args") or {}
    if "image_size" not in own or own["image_size"] is not None or not settings.get("name"):
        return
    size = settings.get("image_size")
    if size is None:
        size = usual_size(settings["name"], str(settings.get("weights")), most=MOST_PIXELS)
    own["image_size"] = size
