"""YAML files, read whole; what is wrong with one is said in a line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["not_utf8", "read_yaml"]


def read_yaml(path: str | Path) -> Any:
    """The content of a file.

    Raises:
        ValueError: It cannot be read, is not UTF-8, or no YAML.
    """
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path, error)) from error
    except (OSError, yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: cannot be read as YAML ({reason}). Correct it.") from error


def not_utf8(path: str | Path, error: UnicodeDecodeError) -> str:
    """What to say of a file of text that is not UTF-8."""
    return f"{path}: is not UTF-8, from byte {error.start} on. Save it as UTF-8."
