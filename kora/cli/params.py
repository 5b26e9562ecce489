"""`kora params` and `kora data`: look at a config without running it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

__all__ = ["data", "data_parser", "params", "params_parser"]


def params(args: Sequence[str]) -> None:
    """Count what a config would train. No weights and no data are needed."""
    own, rest = params_parser().parse_known_args(args)

    import torch
    from rich.console import Console

    from kora.cli.match import as_options, matched
    from kora.reports.parameters import parameter_report

    if own.match is not None:
        matched(own.config, own.match, rest, target=own.target, as_json=own.json)
        return
    if own.target is not None:
        raise ValueError(
            "--target is the number of parameters to match, and nothing is matched. Add --match."
        )
    datamodule, task = _instantiate(["fit", *as_options(own.config), *rest])
    if getattr(task, "num_classes", 0) is None:
        task.num_classes = datamodule.num_classes
    task.recall_missing()
    task.adapter_from = None
    task.backbone.to("meta")
    with torch.device("meta"):  # no storage, so no weights are compared
        task.build()
    report = parameter_report(task)
    if own.json:
        print(json.dumps(report.to_dict()))
    else:
        Console().print(report.render())


def data(args: Sequence[str]) -> None:
    """Describe or prepare the data of a config."""
    own, rest = data_parser().parse_known_args(args)

    from rich.console import Console
    from rich.table import Table

    from kora.cli.cache import fill_cache
    from kora.cli.match import as_options
    from kora.console.tables import literal
    from kora.reports.audit_depth import DepthAudit
    from kora.reports.of_task import report_for

    args = ["fit", *as_options(own.config), *rest]
    if own.action == "cache":
        fill_cache(args)
        return
    datamodule, task = _instantiate(args)
    datamodule.prepare_data()
    console = Console()
    if own.action == "prepare":
        cached = getattr(datamodule, "prepare_cache", lambda: None)()
        if cached is not None:
            console.print(cached, highlight=False, soft_wrap=True, markup=False)
        console.print(f"{datamodule.dataset_name} is ready.", highlight=False)
        return
    datamodule.setup_splits()
    report = report_for(task, datamodule)
    summary, found = datamodule.summary(), report.audit()
    assert found is not None
    stated, evaluation = datamodule.protocol(), report.evaluation("test")
    if evaluation:
        stated["evaluation"] = evaluation
    if own.json:
        print(json.dumps({**summary, "audit": found.to_dict(), "protocol": stated}))
        return
    height, width = summary["image_size"]
    classes = f"{summary['num_classes']} classes, " if summary["num_classes"] > 1 else ""
    console.print(f"{summary['dataset']}: {classes}{height}x{width} pixels", highlight=False)
    if classes:
        names = summary["class_names"]
        shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        console.print(f"classes: {shown}", highlight=False, markup=False)
    console.print(found.render(histogram=True) if isinstance(found, DepthAudit) else found.render())
    protocol = Table("key", "value", title="Protocol", title_justify="left", show_header=False)
    for key, value in stated.items():
        protocol.add_row(literal(key), literal(str(value)))
    console.print(protocol)


def params_parser() -> argparse.ArgumentParser:
    """The options of `kora params` that `kora fit` does not have."""
    parser = argparse.ArgumentParser(
        prog="kora params",
        description="What trains, where and how much. Further options are those of kora fit.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument(
        "--match", nargs="*", metavar="FILE",
        help="print the rank or width that gives other strategies the same number of trainable "
        "parameters, without the head. The strategy of the experiment sets the number. Each FILE "
        "(without any: each --config after the first) is another strategy: a fragment, or a "
        "complete experiment, of which only the adapter counts",
    )  # fmt: skip
    parser.add_argument(
        "--target", type=int, metavar="N", help="match this number of parameters instead"
    )
    parser.add_argument("--config", "-c", action="append", required=True, metavar="FILE")
    return parser


def data_parser() -> argparse.ArgumentParser:
    """The options of `kora data` that `kora fit` does not have."""
    parser = argparse.ArgumentParser(
        prog="kora data",
        description="describe: sizes, classes, images a class and the audit of the splits. "
        "prepare: download and extract. cache: fill the feature cache of this config ahead. "
        "Further options are those of kora fit.",
    )
    parser.add_argument("action", choices=("describe", "prepare", "cache"))
    parser.add_argument("--json", action="store_true", help="print plain JSON (describe)")
    parser.add_argument("--config", "-c", action="append", required=True, metavar="FILE")
    return parser


def _instantiate(args: Sequence[str]) -> tuple[Any, Any]:
    """Data module and model of a config, without a trainer and without fetching weights."""
    from kora.training.lightning_cli import parse

    cli = parse(args)
    cli.options.model.init_args.backbone.init_args.weights = "random"
    made = cli.parser.instantiate(cli.config)[cli.command]
    cli.source_stages.assume_sources(made.model)
    return made.data, made.model
