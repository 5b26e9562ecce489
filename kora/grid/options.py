"""What `kora grid` and `kora tune` let their callers say of a file's runs."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["add_file_options", "picked"]


def add_file_options(parser: argparse.ArgumentParser, what: str) -> None:
    """`--only` and `--set`.

    Args:
        parser: Is given the options.
        what: The names are of, for the help.
    """
    parser.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="TEXT",
        help=f"{what} with one of these in their names, as --dry_run shows them",
    )  # fmt: skip
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="overrides",
        help="options of kora fit for all runs; they win over `set` of the file",
    )  # fmt: skip


def picked(path: Path, what: str, names: Mapping[str, str], only: Sequence[str]) -> set[str]:
    """The names that hold one of some texts, or are it: a whole name is that one alone.

    All of them where none is asked for.

    Args:
        path: Of the file.
        what: The names are of, for a message.
        names: Each with the shorter name that a message says.
        only: The texts.

    Raises:
        ValueError: no name holds one of the texts.
    """
    for text in only:
        if not any(text in name for name in names):
            there = ", ".join(dict.fromkeys(names.values()))
            raise ValueError(
                f"--only {text}: no {what} of {path} has this in its name. There are: {there}."
            )
    return {
        name
        for name in names
        if not only or any(text == name or (text not in names and text in name) for text in only)
    }
