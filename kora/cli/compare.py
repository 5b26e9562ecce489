"""`kora compare`: the options of the command line, without slow imports."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["compare", "compare_parser"]


def compare(args: Sequence[str]) -> None:
    """Parse the options, fetch runs from W&B, and compare."""
    parser = compare_parser()
    own = parser.parse_args(args)
    if own.against and own.out is None:
        parser.error(f"--against {own.against[0]} draws a picture; say where with --out FOLDER")
    if not own.runs and own.wandb is None:
        parser.error("name runs, or a project with --wandb ENTITY/PROJECT")
    from kora.compare.command import compare_command

    notes: list[str] = []
    if own.wandb is not None:
        from kora.loggers.wandb_runs import address_of, fetch_runs

        found, notes = fetch_runs(address_of(own.wandb))
        own.runs += found
    compare_command(
        own.runs, own.metric, own.out, by=own.by, reference=own.reference, against=own.against,
        notes=notes,
    )  # fmt: skip


def compare_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora compare", description="Mean and 95 % interval over the seeds of finished runs."
    )
    parser.add_argument("runs", nargs="*", help="runs, or folders above runs")
    parser.add_argument(
        "--wandb", metavar="ENTITY/PROJECT[/EXPERIMENT]", help="also the finished runs in W&B"
    )
    parser.add_argument(
        "--metric",
        help="default: test/accuracy of classification, test/rmse_m of depth, test/miou of masks, "
        "test/map of boxes",
    )
    parser.add_argument(
        "--by", default="strategy", metavar="WHAT",
        help="strategy (default), experiment, or a setting such as model.adapter.d_comp",
    )  # fmt: skip
    parser.add_argument(
        "--reference", metavar="NAME", help="what differences refer to (default: LinearProbe)"
    )
    parser.add_argument("--out", help="folder for the table as .html, .md, .tex, .csv and .png")
    parser.add_argument(
        "--against", action="append", default=[], choices=("images", "seconds", "trainable"),
        help="draw the metric of all tables over training images, seconds or parameters, in --out",
    )  # fmt: skip
    return parser
