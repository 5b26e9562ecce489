"""Fixtures of the command-line tests."""

from tests.cli.support import here

__all__ = ["here"]
