"""`kora init`: copies of the configs that come with kora, to edit."""

from __future__ import annotations

import argparse
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from kora.runs.config_files import configs_folder

__all__ = ["init_parser", "main"]


def main(args: Sequence[str]) -> None:
    """Copy the configs into a folder that does not exist yet."""
    folder = Path(init_parser().parse_args(args).folder)
    if folder.exists():
        raise ValueError(
            f"{folder} is there already. Name another folder, or edit the configs that it holds."
        )
    try:
        shutil.copytree(configs_folder(), folder)
    except OSError as error:
        raise OSError(f"{folder} cannot be written ({error}). Name another folder.") from error
    files = sum(1 for _ in folder.rglob("*.yaml"))
    command = shlex.join(["kora", "fit", "--config", f"{folder}/quickstart.yaml"])
    print(f"{files} configs in {folder}. Try: {command}")


def init_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="kora init", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", nargs="?", default="configs", help="default: configs")
    return parser
