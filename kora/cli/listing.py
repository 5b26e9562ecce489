"""`kora list`: what a config may name, and the configs, read from source without importing it."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

__all__ = [
    "PARTS",
    "config_claim",
    "describe_classes",
    "find_configs",
    "find_subclasses",
    "is_grid",
    "is_search",
    "is_sweep",
    "main",
]


#: Parts of a KoRA of which there is one class, by its name: where a config names it.
PARTS = {
    "Injection": "model.adapter.node_form.inject",
    "Feedback": "model.adapter.feedback",
}


def find_subclasses(place: Path, base: str) -> dict[str, str]:
    """Names of the classes below `base` in a file or folder, with their first line of doc."""
    classes = _classes(place)
    parents = {
        node.name: {b.id if isinstance(b, ast.Name) else getattr(b, "attr", "") for b in node.bases}
        for node in classes
    }

    def descends(name: str) -> bool:
        return base in parents.get(name, ()) or any(map(descends, parents.get(name, ())))

    return {
        node.name: _first_line(node)
        for node in classes
        if descends(node.name) and not node.name.startswith("_")
    }


def describe_classes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The first line of doc of the classes of these names in the files of a folder."""
    found = {node.name: _first_line(node) for node in _classes(folder)}
    return {name: found[name] for name in names}


def _classes(place: Path) -> list[ast.ClassDef]:
    return [
        node
        for file in ([place] if place.is_file() else sorted(place.rglob("*.py")))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]


def _first_line(node: ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").split("\n")[0]


def find_configs(root: Path = Path("configs")) -> list[Path]:
    """All config files below a folder."""
    return sorted(root.rglob("*.yaml"))


def is_grid(path: Path) -> bool:
    """Whether a config is for `kora grid`: it says on top of which configs its runs are made."""
    return re.search(r"^base:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def is_search(path: Path) -> bool:
    """Whether a grid is for `kora tune`: it says what is tried."""
    found = re.search(r"^tune:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None
    return found and is_grid(path)


def is_sweep(path: Path) -> bool:
    """Whether a file below `configs/` is for `wandb sweep`."""
    return path.parent.name == "sweeps"


def config_claim(path: Path) -> str:
    """The first comment of a config, up to an empty line or a heading such as `Run:`."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip("# ")
        if not line.startswith("#") or (any(words) and (not text or re.match(r"\w+: ", text))):
            break
        words.append(text)
    return " ".join(filter(None, words))


def main(args: Sequence[str]) -> None:
    """Print the lists."""
    parser = argparse.ArgumentParser(prog="kora list", description=__doc__)
    parser.parse_args(args)
    from rich.console import Console
    from rich.markup import escape
    from rich.padding import Padding
    from rich.table import Column, Table

    console = Console()

    def show(title: str, rows: dict[str, str]) -> None:
        name = Column("name", no_wrap=True)  # a name that is cut off cannot be copied
        table = Table(name, "what it is", title=title, title_justify="left", box=None)
        for key, text in rows.items():
            table.add_row(escape(key), escape(text))
        console.print(table, "")

    package = Path(__file__).parents[1]
    adapters = package / "adapters"
    show("Strategies (model.adapter)", find_subclasses(adapters, "Strategy"))
    show("Composers (model.adapter.composer)", find_subclasses(adapters, "Composer"))
    show("Readouts (model.adapter.readout)", find_subclasses(adapters, "Readout"))
    show("Nodes of KoRA (model.adapter.node_form)", find_subclasses(adapters, "NodeForm"))
    title = "Matrices of refined nodes (model.adapter.node_form.matrix)"
    show(title, find_subclasses(adapters, "NodeMatrix"))
    parts = describe_classes(adapters, PARTS)
    show("Parts of KoRA", {f"{PARTS[name]}: {name}": text for name, text in parts.items()})
    show("Depth heads (model.head)", find_subclasses(package / "heads", "DepthHead"))
    show("Depth losses (model.loss)", find_subclasses(package / "losses.py", "DepthLoss"))
    spec = find_spec("datamodules")
    assert spec is not None
    assert spec.origin is not None
    found = find_subclasses(Path(spec.origin).parent, "ImageDataModule")
    show("Data modules (data)", {f"datamodules.{name}": text for name, text in found.items()})
    files = find_configs()
    searches = [path for path in files if is_search(path)]
    grids = [path for path in files if is_grid(path) and path not in searches]
    sweeps = [path for path in files if is_sweep(path)]
    configs = [path for path in files if path not in [*grids, *searches, *sweeps]]
    for title, found_files in (
        ("Configs (kora fit --config)", configs),
        ("Grids (kora grid --config)", grids),
        ("Searches (kora tune --config)", searches),
        ("Sweeps (wandb sweep)", sweeps),
    ):
        if found_files:
            console.print(f"[italic]{title}[/italic]")
        for path in found_files:
            console.print(f" {path}", soft_wrap=True, highlight=False, markup=False)
            console.print(Padding(escape(config_claim(path)), (0, 0, 0, 4)), style="dim")
    if not files:
        console.print("Configs: no folder configs/ here; run this in a clone of the repository.")
