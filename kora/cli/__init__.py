"""The command line: dispatch, help and lists without torch, and small commands."""

from kora.cli.dispatch import main

__all__ = ["main"]
