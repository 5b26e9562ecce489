"""`kora params --match`: read the experiment and the strategies to match."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from kora.adapters import Strategy
from kora.adapters.matching import count_trainable, match, render
from kora.backbone.vit import Backbone
from kora.backbone.weights import without_numbers
from kora.runs.config_files import find_config
from kora.runs.yaml_files import read_yaml
from kora.tasks import ClassificationTask
from kora.training.lightning_cli import KoraCLI, parse

__all__ = ["as_options", "matched"]


def matched(
    configs: Sequence[str],
    files: Sequence[str],
    options: Sequence[str],
    *,
    target: int | None,
    as_json: bool,
) -> None:
    """Print the size that brings each strategy nearest to the same number of trainable parameters.

    `configs` are the layers of the experiment, `files` the strategies. Without `files`, the first
    config is the experiment and each further one a strategy. If a strategy is a complete
    experiment, only its adapter counts. Without `target`, the experiment's own strategy sets the
    number.

    Raises:
        ValueError: There is nothing to match, or a file is no experiment or strategy.
    """
    layers, others = (configs, files) if files else (configs[:1], configs[1:])
    others = [find_config(file) for file in others]
    if target is not None and target < 1:
        raise ValueError(f"--target {target}: expected a number of parameters, 1 or more.")
    if not others and target is None:
        raise ValueError(
            f"--match: {layers[0]} alone has nothing to be matched to. Name other strategies, "
            "--match configs/adapters/lora.yaml configs/adapters/kora.yaml, or --target N."
        )
    if not any(_is_complete(_read(file)) for file in layers):
        raise ValueError(
            f"--match: {layers[0]} is no experiment: it has no model.class_path, so the backbone "
            "is not known. Put an experiment first: --config configs/quickstart.yaml"
        )
    base = [*as_options(layers), *options]
    cli = parse(["fit", *base])
    backbone, own = _model(cli, base)
    strategies = [(_names(layers), own)]
    strategies += [(file, _model(cli, [*base, "--config", _overlay(file)])[1]) for file in others]
    origin = "the number of --target"
    if target is None:
        target, origin = (
            count_trainable(own, backbone),
            f"the number of {own.label} in {_names(layers)}",
        )
        if target == 0:
            raise ValueError(
                f"--match: {own.label} of {_names(layers)} trains nothing but the head, so there "
                "is no number to match. Give --target N, or an experiment with another adapter."
            )
    rows = match(strategies, backbone, target)
    if as_json:
        found = {"backbone": backbone.name, "target": target}
        print(json.dumps({**found, "strategies": [row.to_dict() for row in rows]}))
    else:
        Console().print(render(rows, target, origin=origin, backbone=backbone.name))


def _model(cli: KoraCLI, args: Sequence[str]) -> tuple[Backbone, Strategy]:
    """Backbone and strategy of a config, without storage or a trainer.

    The strategy knows the number of classes, on which a width may depend that is left out.
    """
    parser = cli.parser_of(cli.command)
    options = parser.parse_args(list(args))
    options.model.init_args.backbone.init_args.weights = "random"
    with without_numbers():
        made = parser.instantiate(options)
    task = made.model
    cli.source_stages.assume_sources(task)
    if isinstance(task, ClassificationTask):
        task.adapter.num_outputs = task.num_classes or made.data.num_classes
    return task.backbone, task.adapter


def _overlay(file: str) -> str:
    """What is added to the experiment: the fragment, or the adapter of a complete experiment."""
    config = _read(file)
    if _is_complete(config):
        adapter = parse(["fit", "--config", file]).resolved()["model"]["init_args"].get("adapter")
        return yaml.safe_dump({"model": {"init_args": {"adapter": adapter}}})
    model = config.get("model") or {}
    if "adapter" not in model and "adapter" not in (model.get("init_args") or {}):
        raise ValueError(
            f"--match: {file} sets no model.adapter, so it is no strategy to match. Layers of the "
            "experiment go with --config, and strategies after --match: "
            f"kora params --config EXPERIMENT --config {file} --match STRATEGY..."
        )
    return file


def _read(file: str) -> dict[str, Any]:
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--match: {file} does not exist. Name a config file.")
    config = read_yaml(path)
    if not isinstance(config, dict) or not isinstance(config.get("model", {}) or {}, dict):
        raise ValueError(f"--match: {file} is no config: expected keys such as `model:`.")
    return config


def _is_complete(config: dict[str, Any]) -> bool:
    return "class_path" in (config.get("model") or {})


def as_options(files: Sequence[str]) -> list[str]:
    """Config files as arguments of `kora fit`."""
    return [part for file in files for part in ("--config", file)]


def _names(files: Sequence[str]) -> str:
    return " + ".join(files)
