"""Find a config by name: in the working directory, next to the file that names it, or in kora."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

__all__ = ["configs_folder", "find_config", "find_named_in"]


def configs_folder() -> Path:
    """Folder of the configs that come with kora: in the package, or next to it in a clone."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(name: str, *, beside: Path | None = None) -> str:
    """The path of a config: as it is given, else below `beside`, else one that comes with kora.

    Those have the names of a clone, with or without `configs/` and `.yaml`: `quickstart`,
    `adapters/lora`. A name that is not found is returned as it is.
    """
    if Path(name).is_file():
        return name
    ours = configs_folder() / name.removeprefix("configs/")
    places = [] if beside is None else [beside / name]
    for path in (*places, ours, ours.with_name(f"{ours.name}.yaml")):
        if path.is_file():
            return str(path)
    return name


def find_named_in(file: Path, names: Iterable[Any]) -> list[Any]:
    """The paths of configs that a file names; values that are not text are returned as they are."""
    return [
        find_config(name, beside=file.parent) if isinstance(name, str) else name for name in names
    ]
