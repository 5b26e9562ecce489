"""Fixtures of the command-line tests."""

from tests.support.cli import here

__all__ = ["here"]
