"""Pages of the site beside those of docs/: the reference, made from the code, and files of ours.

A hook of mkdocs (mkdocs.yml); it writes into the site alone.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from docstring_parser import DocstringStyle, parse
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from kora.cli.completion import command_parsers
from kora.cli.dispatch import FIT_USAGE, USAGE
from kora.cli.listing import KINDS, rows_of

ROOT = Path(__file__).parents[2]

#: Files of the repository that pages link to, and where they are on the site.
BESIDE = {
    "README.md": "more/readme.md",
    "benchmarks/README.md": "more/benchmarks.md",
    "CONTRIBUTING.md": "more/contributing.md",
    "CHANGELOG.md": "more/changelog.md",
    "kora/backbone/VIT_NANO.md": "more/vit_nano.md",
}
#: Packages with a page of the Python reference, and what stands above it.
PACKAGES = {
    "kora": "What most programs need.",
    "kora.adapters": "Strategies, and the parts of KoRA. A config names them at `model.adapter`.",
    "kora.tasks": "LightningModules. A config names them at `model`.",
    "kora.heads": "From features to predictions.",
    "kora.losses": "Losses of depth and segmentation.",
    "kora.backbone.vit": "The frozen vision transformer.",
    "datamodules": "LightningDataModules. A config names them at `data`.",
}
#: In place of Lightning's words, which are longer or not true of `kora fit`.
_OURS = {
    "seed_everything": "Seed of everything that is drawn at random.",
    "ckpt_path": "Checkpoint to resume from (`fit`), or to measure (the other commands).",
    "weights_only": "Without effect: nothing is ever unpickled.",
}
_LINK = re.compile(r"(\]\()([^)\s#]+)(#[^)\s]*)?(\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    parsers = command_parsers()
    pages = {
        "reference/commands.md": commands(parsers),
        "reference/config.md": config_keys(parsers["fit"]),
        **{f"reference/{name}.md": package(name, text) for name, text in PACKAGES.items()},
        **{page: (ROOT / name).read_text(encoding="utf-8") for name, page in BESIDE.items()},
    }
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to their page; to those without one, nowhere."""
    source = page.file.src_uri
    if source.startswith(("results/", "tutorials/", "more/")):
        page.meta["hide"] = ["toc"]  # their tables and outputs are wide
    origin = {page: name for name, page in BESIDE.items()}.get(source)
    here = ROOT / (origin or f"docs/{source}")

    def led(found: re.Match[str]) -> str:
        target, anchor = found[2], found[3] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        path = Path(os.path.normpath(here.parent / target))
        if not path.is_relative_to(ROOT):
            return found[0]
        name = path.relative_to(ROOT).as_posix()
        if name in BESIDE:
            uri = BESIDE[name]
        elif name.startswith("docs/") and files.get_file_from_path(name.removeprefix("docs/")):
            uri = name.removeprefix("docs/")
        else:
            return f"](repository:{name}{found[4]}"
        return f"]({os.path.relpath(uri, Path(source).parent)}{anchor}{found[4]}"

    told = _LINK.sub(led, markdown)
    return re.sub(r"\[([^\]]+)\]\(repository:([^)]+)\)", _in_the_repository, told)


def _in_the_repository(found: re.Match[str]) -> str:
    """A file without a page, by its name."""
    same = found[1].strip("`").lower() in found[2].lower()
    return f"`{found[2]}`" if same else f"{found[1]} (`{found[2]}`)"


# -- the command line ----------------------------------------------------------------------------


def commands(parsers: Mapping[str, ArgumentParser]) -> str:
    """A page with the help of every command."""
    os.environ["COLUMNS"] = "88"
    shown = [
        "# Commands\n\n`kora COMMAND --help` prints what stands here.\n",
        f"```\n{USAGE}```\n\n## kora fit\n\n```\n{FIT_USAGE}```\n",
        "`kora validate` and `kora test` take the same options and `--ckpt_path FILE`. "
        "[Config keys](config.md) has them all.\n",
    ]
    for name, parser in parsers.items():
        if name not in ("fit", "validate", "test"):
            shown.append(f"## kora {name}\n\n```\n{parser.format_help()}```\n")
    return "\n".join(shown)


# -- configs -------------------------------------------------------------------------------------


def config_keys(fit: ArgumentParser) -> str:
    """A page with every key of a config, its default and its meaning."""
    shown = [
        "# Config keys\n\nA key of a config is an option of the command line: `trainer: "
        "{max_epochs: 5}` is `--trainer.max_epochs 5`. A class has its keys below `init_args`; "
        "the command line leaves that word out: `--model.adapter LoRA --model.adapter.rank 4`. "
        "`kora fit --print_config` prints what a config makes of all of them.\n",
        "## The run\n\n" + _table(_of_the_parser(fit)),
    ]
    for title, intro, classes in _classes():
        shown.append(f"## {title}\n\n{intro}\n")
        for kind in classes:
            rows = list(_arguments(kind))
            shown.append(f"### {kind.__name__}\n\n{_first_line(kind)}\n\n{_table(rows)}")
    shown.append(
        "## The trainer\n\nThe arguments of Lightning's `Trainer`, with the defaults of `kora "
        "fit`. Each experiment of ours sets `max_epochs`; without it Lightning trains 1,000.\n\n"
        + _table(_of_the_trainer(fit))
    )
    return "\n".join(shown)


def _of_the_parser(parser: Any) -> Iterator[tuple[str, str, str]]:
    """Option, default and meaning of what is neither model, data nor trainer."""
    for action in parser._actions:
        name = action.option_strings[-1].removeprefix("--") if action.option_strings else ""
        group = name.partition(".")[0]
        skipped = group in ("model", "data", "trainer", "optimizer", "lr_scheduler", "config")
        if not name or skipped or not action.help or action.help == "==SUPPRESS==":
            continue
        if name in ("help", "print_config", "wandb", "save"):
            continue
        yield name, _default(action.default), _OURS.get(name, action.help.split(" (type:")[0])


def _of_the_trainer(parser: Any) -> Iterator[tuple[str, str, str]]:
    """Option, default and the first sentence of Lightning's words."""
    for action in parser._actions:
        name = action.option_strings[-1].removeprefix("--") if action.option_strings else ""
        if name.startswith("trainer.") and name.count(".") == 1 and action.help:
            said = re.sub(r":\w+:|`(?=`)", "", " ".join(action.help.split(" (type:")[0].split()))
            yield name.rstrip("+"), _default(action.default), said.split(". ")[0].rstrip(".")


def _classes() -> Iterator[tuple[str, str, list[type]]]:
    """Sections of classes that a config may name."""
    tasks, backbone = import_module("kora.tasks"), import_module("kora.backbone.vit")
    names = (name for name in tasks.__all__ if name != "AdapterTask")
    yield "Tasks", "At `model`.", [getattr(tasks, name) for name in names]
    yield "The backbone", "At `model.backbone`.", [backbone.Backbone]
    homes = [import_module(name) for name in PACKAGES]
    for kind, (title, *_) in KINDS.items():
        found = [
            next(getattr(home, name) for home in homes if hasattr(home, name))
            for name in (one.rpartition(": ")[2].rpartition(".")[2] for one in rows_of(kind))
        ]
        name, _, place = title.partition(" (")
        yield name, f"At `{place.rstrip(')')}`." if place else "", found


def _arguments(kind: type) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of the arguments of a class, and of those that it hands on."""
    told = {
        one.arg_name.lstrip("*"): (one.description or "")
        for base in reversed(kind.__mro__)
        for one in parse(inspect.getdoc(base) or "", DocstringStyle.GOOGLE).params
    }
    seen: set[str] = set()
    for owner in kind.__mro__:
        if "__init__" not in vars(owner) or not owner.__module__.startswith(
            ("kora", "datamodules")
        ):
            continue
        parameters = inspect.signature(owner.__init__).parameters.values()
        for one in parameters:
            if one.name in ("self", *seen) or one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
                continue
            seen.add(one.name)
            default = "required" if one.default is one.empty else _default(one.default)
            yield one.name, default, told.get(one.name, "")
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return


def _default(value: Any) -> str:
    if inspect.isfunction(value) or inspect.isclass(value):
        return f"`{value.__name__.lstrip('_')}`"
    if isinstance(value, str):
        return f"`{value}`"
    plain = value is None or isinstance(value, bool | int | float | list | tuple)
    return f"`{json.dumps(value) if plain else f'{type(value).__name__}()'}`"


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def _table(rows: Any) -> str:
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for name, default, meaning in rows:
        text = " ".join(meaning.split()).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{name}` | {default.replace('|', chr(92) + '|')} | {text} |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "It has no keys.\n"


# -- Python --------------------------------------------------------------------------------------


def package(name: str, text: str) -> str:
    """A page with the public classes and functions of a package."""
    module = import_module(name)
    names = sorted(one for one in getattr(module, "__all__", ()) if not one.startswith("_"))
    if name == "kora.adapters":  # the package exports what its modules do
        names = sorted(
            one
            for one, it in vars(module).items()
            if (inspect.isclass(it) or inspect.isfunction(it))
            and it.__module__.startswith("kora.adapters")
            and not one.startswith("_")
        )
    blocks = [f"# {name}\n\n{text}\n"]
    for one in names:
        it = getattr(module, one)
        if inspect.isclass(it) or inspect.isfunction(it):
            heading = f"    options: {{heading: {name}.{one}, toc_label: {one}}}"
            blocks.append(f"::: {it.__module__}.{one}\n{heading}\n")
    return "\n".join(blocks)
