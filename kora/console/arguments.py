"""Kinds of numbers that options take."""

from __future__ import annotations

import argparse

__all__ = ["not_negative", "positive"]


def positive(text: str) -> int:
    """A whole number from 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}, expected 1 or more")
    return number


def not_negative(text: str) -> int:
    """A whole number from 0."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number}, expected 0 or more")
    return number
