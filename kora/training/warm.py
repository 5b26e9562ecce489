"""Builds the parser of `kora fit` in the fork server, which imports this module last.

Its forks take that parser; each would spend half a second on its own.
"""

from __future__ import annotations

from kora.runs.config_files import configs_folder
from kora.training.lightning_cli import parse
from kora.training.parser import remember

__all__ = ["build_parser"]


def build_parser() -> None:
    """Build the parser of `kora fit`, which this process and its forks then remember."""
    remember()
    # By its path: a file of the user with this name, and a mistake in it, would end the server.
    parse(["fit", "--config", str(configs_folder() / "quickstart.yaml")])


build_parser()
