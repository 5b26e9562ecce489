"""`kora list`: what a config may name, and the configs, read from source without importing it."""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from kora.runs.config_files import configs_folder

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "KINDS",
    "PARTS",
    "config_claim",
    "describe_classes",
    "find_configs",
    "find_subclasses",
    "is_grid",
    "is_search",
    "is_sweep",
    "list_parser",
    "main",
    "rows_of",
]


#: Parts of KoRA that have a single class, each with the option that names it.
PARTS = {
    "Injection": "model.adapter.node_form.inject",
    "Feedback": "model.adapter.feedback",
}


def find_subclasses(place: Path, base: str) -> dict[str, str]:
    """Names of the subclasses of `base` in a file or folder, with the first line of their docs."""
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
    """The first docstring line of the classes with these names in the files of a folder."""
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


def find_configs(root: Path | None = None) -> list[Path]:
    """All config files below a folder; None: below `configs` here, or those that come with kora."""
    if root is None:
        root = Path("configs") if Path("configs").is_dir() else configs_folder()
    return sorted(path for path in root.rglob("*.yaml") if path.is_file())


def is_grid(path: Path) -> bool:
    """Whether a config is for `kora grid`: it has one of the keys `base` and `vary`."""
    return re.search(r"^(base|vary):", _text(path), re.MULTILINE) is not None


def is_search(path: Path) -> bool:
    """Whether a config is for `kora tune`: it is a grid with the key `tune`."""
    found = re.search(r"^tune:", _text(path), re.MULTILINE) is not None
    return found and is_grid(path)


def is_sweep(path: Path) -> bool:
    """Whether a file below `configs/` is for `wandb sweep`."""
    return path.parent.name == "sweeps"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def config_claim(path: Path) -> str:
    """The first comment of a config, up to an empty line or a heading such as `Run:`."""
    words: list[str] = []
    for line in _text(path).splitlines():
        text = line.strip("# ")
        if not line.startswith("#") or (any(words) and (not text or re.match(r"\w+: ", text))):
            break
        words.append(text)
    return " ".join(filter(None, words))


def list_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="kora list", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "what", nargs="?", choices=(*KINDS, "configs"), metavar="WHAT",
        help=f"one of {', '.join((*KINDS, 'configs'))}",
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="everything, with whole sentences")
    return parser


def main(args: Sequence[str]) -> None:
    """Print the lists: strategies and data modules, one kind, or all."""
    parser = list_parser()
    own = parser.parse_args(args)
    if own.what and own.all:
        parser.error(f"--all lists everything; leave out '{own.what}', which is listed whole")
    from rich.console import Console

    console = Console()
    whole = own.all or own.what is not None
    for kind in (own.what,) if own.what else tuple(KINDS) if own.all else ("strategies", "data"):
        if kind != "configs":
            _show(console, kind, whole=whole)
    if own.all or own.what == "configs":
        _show_configs(console)
    if not whole:
        others = [kind for kind in (*KINDS, "configs") if kind not in ("strategies", "data")]
        console.print(f"More: kora list {' | '.join(others)}, or --all", markup=False)


#: What is listed: the title, the base class, and where its classes are, below the package.
KINDS = {
    "strategies": ("Strategies (model.adapter)", "Strategy", "adapters"),
    "composers": ("Composers (model.adapter.composer)", "Composer", "adapters"),
    "readouts": ("Readouts (model.adapter.readout)", "Readout", "adapters"),
    "nodes": ("Nodes of KoRA (model.adapter.node_form)", "NodeForm", "adapters"),
    "matrices": (
        "Matrices of refined nodes (model.adapter.node_form.matrix)", "NodeMatrix", "adapters",
    ),
    "parts": ("Parts of KoRA", "", "adapters"),
    "heads": ("Heads of depth (model.head)", "DepthHead", "heads"),
    "segmentation": ("Heads of segmentation (model.head)", "SegmentationHead", "heads"),
    "detection": ("Heads of detection (model.head)", "DetectionHead", "heads"),
    "losses": ("Losses of depth (model.loss)", "DepthLoss", "losses"),
    "data": ("Data modules (data)", "ImageDataModule", ""),
}  # fmt: skip


def rows_of(kind: str) -> dict[str, str]:
    """Names of a kind, each with its description."""
    _, base, place = KINDS[kind]
    package = Path(__file__).parents[1]
    if kind == "parts":
        found = describe_classes(package / place, PARTS)
        return {f"{PARTS[name]}: {name}": text for name, text in found.items()}
    if kind == "data":
        spec = find_spec("datamodules")
        assert spec is not None
        assert spec.origin is not None
        found = find_subclasses(Path(spec.origin).parent, base)
        return {f"datamodules.{name}": text for name, text in found.items()}
    return find_subclasses(package / place, base)


def _show(console: Console, kind: str, *, whole: bool) -> None:
    """A table of a kind; without `whole`, each row is one line."""
    from rich.table import Column, Table

    from kora.console.tables import literal

    rows = rows_of(kind)
    # A name that is cut off cannot be copied.
    name = Column("name", no_wrap=True, min_width=max(map(len, rows)))
    what = Column("what it is", no_wrap=not whole, overflow="fold" if whole else "ellipsis")
    table = Table(name, what, title=KINDS[kind][0], title_justify="left", box=None)
    for key, text in rows.items():
        table.add_row(literal(key), literal(text))
    console.print(table, "")


def _show_configs(console: Console) -> None:
    from rich.padding import Padding

    from kora.console.tables import literal

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
            name = path if not path.is_absolute() else path.relative_to(configs_folder().parent)
            console.print(f" {name}", soft_wrap=True, highlight=False, markup=False)
            console.print(Padding(literal(config_claim(path)), (0, 0, 0, 4)), style="dim")
    console.print(
        "Use any of them by its name, also without configs/ and .yaml; kora init copies them."
    )
