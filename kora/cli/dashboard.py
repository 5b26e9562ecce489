"""`kora dashboard`: the options of the command line, without slow imports."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from importlib.util import find_spec

from kora.console.formats import HEADLINES

__all__ = ["dashboard", "dashboard_parser"]


def dashboard(args: Sequence[str]) -> None:
    """Make or update the view of a W&B project, and maybe a report.

    Raises:
        ValueError: No such project, no login, or `wandb-workspaces` is not installed.
        RuntimeError: W&B does not answer.
    """
    parser = dashboard_parser()
    own = parser.parse_args(args)
    if find_spec("wandb_workspaces") is None:
        raise ValueError(
            "kora dashboard needs wandb-workspaces: pip install 'kora-vit[wandb-workspaces]'"
        )
    os.environ.setdefault("WANDB_SILENT", "true")  # it would print the address, too
    from kora.compare.wandb_dashboard import (
        compared,
        report_of,
        save_report,
        save_view,
        shown,
        view_of,
    )
    from kora.console.say import say
    from kora.loggers.wandb_runs import address_of, fetch_runs

    where = address_of(own.project)
    if own.report and where.experiment is None:
        parser.error("--report is about one experiment: name it, as ENTITY/PROJECT/EXPERIMENT")
    comparison, notes = None, list[str]()
    if own.report:
        folders, without_record = fetch_runs(where)
        comparison, left_out = compared(folders, own.metric)
        notes = [*without_record, *left_out]
        for note in notes:
            say(note)
    names = [group.name for group in comparison.groups] if comparison else own.strategies
    view = view_of(where, own.metric, names)
    report = None if comparison is None else report_of(where, own.metric, comparison, notes)
    if own.dry_run:
        print(shown(view))
        if report is not None:
            print(shown(report))
        return
    say(f"view:   {save_view(view)}")
    if report is not None:
        say(f"report: {save_report(report)}")


def dashboard_parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="kora dashboard",
        description="Make the view of a W&B project that compares strategies, or update it: "
        "grouped by strategy with bands over seeds, scores, costs, and test images.",
        allow_abbrev=False,
    )
    parser.add_argument("project", metavar="ENTITY/PROJECT[/EXPERIMENT]")
    parser.add_argument(
        "--metric", choices=HEADLINES, default="accuracy",
        help="of classification (default), depth, segmentation or detection",
    )  # fmt: skip
    parser.add_argument(
        "--strategies", nargs="+", default=[], metavar="NAME",
        help="those that get the colours of KoRA's pictures; --report finds them itself",
    )  # fmt: skip
    parser.add_argument(
        "--report", action="store_true",
        help="also a report with the table and the verdicts of kora compare",
    )  # fmt: skip
    parser.add_argument("--dry_run", action="store_true", help="print what would be saved")
    return parser
