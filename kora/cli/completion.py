"""`kora completion SHELL`: a script by which the shell completes commands, options and paths."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

import shtab

from kora.cli.dispatch import FIT_USAGE, PARSERS
from kora.runs.config_files import configs_folder

__all__ = ["command_parsers", "completion_parser", "main"]

_OF_LIGHTNING = ("fit", "validate", "test")
#: Kind of path that an option takes, by the name of its value in the help.
_PATHS = {
    **dict.fromkeys(("config", "file", "path"), shtab.FILE),
    **dict.fromkeys(("folder", "dir", "run", "run2", "runs"), shtab.DIRECTORY),
}


def main(args: Sequence[str]) -> None:
    """Print the script."""
    shell = completion_parser().parse_args(args).shell
    parser = argparse.ArgumentParser(prog="kora")
    commands = parser.add_subparsers()
    for name, own in command_parsers().items():
        for action in own._actions:
            named = action.metavar if isinstance(action.metavar, str) else action.dest
            path = _PATHS.get(named.lower())
            if path is not None and not action.choices:
                action.complete = path  # type: ignore[attr-defined]
        made = commands.add_parser(
            name, parents=[own], add_help=False, conflict_handler="resolve", help=_title(own)
        )
        if name in _OF_LIGHTNING:  # it lacks the options of classes that a config names
            told = set(re.findall(r"--[\w.]+", FIT_USAGE))
            for option in sorted(told - set(made._option_string_actions)):
                made.add_argument(option)
    print(shtab.complete(parser, shell))


def command_parsers() -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each command of `kora`."""
    from kora.training.lightning_cli import parse

    config = str(configs_folder() / "quickstart.yaml")
    parsers: dict[str, argparse.ArgumentParser] = {
        name: parse([name, "--config", config]).parser_of(name) for name in _OF_LIGHTNING
    }
    for name, module in PARSERS.items():
        make: Callable[[], argparse.ArgumentParser]
        make = getattr(import_module(module), f"{name}_parser")
        parsers[name] = make()
    return parsers


def completion_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora completion",
        description="Print a script that lets Tab complete commands, options and paths. bash: add "
        'eval "$(kora completion bash)" to ~/.bashrc, or save the script where bash reads it.',
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)
    return parser


def _title(parser: argparse.ArgumentParser) -> str:
    """The first sentence of a command's description."""
    return (parser.description or "").split(". ")[0]
