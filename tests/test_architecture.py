"""Claims about the shape of the code: who may import whom, and what a file says of itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = sorted([*REPOSITORY.glob("kora/**/*.py"), *REPOSITORY.glob("datamodules/**/*.py")])

#: The folders of `kora/` from the bottom up. A folder imports only those before it; those that
#: stand together do not know each other.
ORDER = (
    ("start_up",),
    ("console", "lightning_internals"),
    ("runs", "backbone"),
    ("metrics",),
    ("adapters", "heads", "losses"),
    ("analysis", "feature_cache"),
    ("tasks",),
    ("reports",),
    ("loggers",),
    ("compare",),
    ("paper", "export"),
    ("training",),
    ("inspect", "grid"),
    ("tune", "adaptation"),
    ("cli",),
)
#: What is imported without torch, so that commands that only read runs start soon,
WITHOUT_TORCH = (
    "kora.runs", "kora.console", "kora.compare", "kora.paper", "kora.adaptation.command",
    "kora.grid.command", "kora.tune.command", "kora.export.options", "kora.inspect.options",
    "kora.cli.completion", "kora.cli.dashboard", "kora.cli.dispatch", "kora.cli.params",
)  # fmt: skip
#: What earlier versions called other modules; only files of users name them.
OLD_PLACES = ("kora.backbones", "kora.sharding")


def module_of(path: Path) -> str:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Names of all modules that a file imports, also inside of functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            assert node.module is not None
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


IMPORTS = {module_of(path): imports_of(path) for path in FILES}


def who_imports(package: str) -> set[str]:
    return {m for m, names in IMPORTS.items() if any(below(name, package) for name in names)}


def test_every_folder_stands_in_the_order() -> None:
    assert len(FILES) > 40
    folders = {m.split(".")[1] for m in IMPORTS if m.startswith("kora.")}
    inside = {name for names in ORDER for name in names}
    assert folders - inside == {"__main__", *(old.partition(".")[2] for old in OLD_PLACES)}
    assert inside <= folders


@pytest.mark.parametrize("folder", [name for names in ORDER for name in names])
def test_a_folder_imports_only_those_before_it(folder: str) -> None:
    (step,) = (k for k, names in enumerate(ORDER) if folder in names)
    allowed = {name for names in ORDER[:step] for name in names} | {folder}
    wrong = [
        (module, name)
        for module, names in IMPORTS.items()
        for name in names
        if below(module, f"kora.{folder}") and below(name, "kora") and name in IMPORTS
        if "." in name and name.split(".")[1] not in allowed
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_these_folders_answer_without_torch(folder: str) -> None:
    names = [module for module in IMPORTS if below(module, folder)]
    code = f"import sys, {', '.join(names)}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_imports_never_go_in_a_circle() -> None:
    """Those for types alone and those within functions included; what a folder offers is not."""
    files = {module_of(path) for path in FILES if path.name != "__init__.py"}
    TopologicalSorter({module: IMPORTS[module] & files for module in files}).prepare()


def test_nobody_inside_uses_an_old_place() -> None:
    assert [m for old in OLD_PLACES for m in who_imports(old)] == []


@pytest.mark.parametrize("library", ["lightning", "timm", "jsonargparse", "torchmetrics"])
def test_adapters_sites_and_heads_know_nothing_of_the_frame(library: str) -> None:
    parts = (
        "kora.adapters",
        "kora.backbone.kernels",
        "kora.backbone.sites",
        "kora.backbone.insertion_points",
        "kora.heads",
        "kora.adapters.folder",
        "kora.tasks.optim",
    )
    assert [m for m in who_imports(library) if any(below(m, part) for part in parts)] == []


def test_only_three_files_know_timm() -> None:
    assert who_imports("timm") == {
        "kora.backbone.vit",
        "kora.backbone.last_block",
        "kora.backbone.nano",
    }


def test_no_test_imports_another() -> None:
    tests = REPOSITORY.glob("tests/**/*.py")
    found = {path: imports_of(path) for path in tests}
    assert [
        (path.name, name)
        for path, names in found.items()
        for name in names
        if re.search(r"^tests\..*\btest_\w+$", name)
    ] == []


def test_data_modules_never_import_kora() -> None:
    assert [m for m in who_imports("kora") if below(m, "datamodules")] == []


def test_a_file_says_what_it_is_and_what_it_gives() -> None:
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{path}: no docstring"
        named = [
            target.id
            for node in tree.body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        ]
        assert path.name in ("__main__.py", "__init__.py") or "__all__" in named, path


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["list"]], ids=lambda a: a[0])
def test_the_quick_commands_do_not_import_torch_and_answer_soon(arguments: list[str]) -> None:
    code = (
        "import sys; from kora.cli import main; main(sys.argv[1:]); "
        "print(sorted({'torch', 'timm', 'lightning', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    )
    seconds = []
    for _ in range(3):  # the best of three: a busy machine says nothing of the command
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        seconds.append(time.monotonic() - started)
    assert done.stdout.strip()
    assert done.stderr.strip() == "[]"
    assert min(seconds) < 2
