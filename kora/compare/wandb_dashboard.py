"""The saved view and the report of a W&B project that compare strategies.

`wandb-workspaces`, which W&B keeps for it, builds and saves both. A second call updates the same
view and the same report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from kora.compare.comparison import Comparison
from kora.console.errors import first_line
from kora.console.formats import is_better_higher
from kora.console.identity import looks
from kora.console.tables import in_markdown
from kora.loggers.wandb_runs import Address
from kora.loggers.wandb_server import require_server

__all__ = ["compared", "report_of", "save_report", "save_view", "shown", "view_of"]

_REPORTS = "wandb_workspaces.reports.v2"
_NO_LOGIN = " --dry_run needs none."
_GROUP = "Group"  # in W&B the group of a run is EXPERIMENT/STRATEGY
_SPREAD = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}


def view_of(where: Address, metric: str, strategies: Sequence[str] = ()) -> Any:
    """The view: runs grouped by strategy with bands over seeds, and what they score and cost.

    Args:
        where: Project, and the experiment whose runs are shown.
        metric: What the test of the task measures, without `test/`.
        strategies: Those whose groups get the colours that they have everywhere in KoRA.
    """
    wr, ws = import_module(_REPORTS), import_module("wandb_workspaces.workspaces")
    score = f"test/{metric}"

    def lines(title: str, *keys: str, x: str = "epoch") -> Any:
        return wr.LinePlot(title=title, x=x, y=list(keys), **_SPREAD)

    def against(title: str, cost: str) -> Any:
        return wr.ScatterPlot(
            title=title, x=wr.SummaryMetric(cost), y=wr.SummaryMetric(score), log_x=True
        )

    def bars(title: str, *keys: str) -> Any:
        return wr.BarPlot(title=title, metrics=[wr.SummaryMetric(k) for k in keys], **_SPREAD)

    training = [lines("Training loss", "train/loss", x="trainer/global_step")]
    if metric == "accuracy":
        training.append(lines("Training accuracy", "train/accuracy"))
    sections = [
        ws.Section(
            "Which is best?",
            [
                bars(f"Test {metric}", score),
                lines(f"Validation {metric}", f"val/{metric}"),
                against("By trainable parameters", "parameters/trainable"),
                against("By seconds of training", "speed/fit_seconds"),
            ],
            is_open=True,
        ),
        ws.Section(
            "Training",
            [
                *training,
                lines("Validation loss", "val/loss"),
                lines(
                    "Learning rates", "train/lr_adapter", "train/lr_head", x="trainer/global_step"
                ),
            ],
            is_open=True,
        ),
        ws.Section(
            "Test images",
            [
                wr.WeavePanelSummaryTable(table_name="test_samples"),
                *([_confusions(wr)] if metric == "accuracy" else []),
            ],
        ),
        ws.Section(
            "Cost",
            [
                bars("Seconds of training", "speed/fit_seconds"),
                bars("Images a second", "speed/train_images_per_second"),
                bars("Memory, MiB", "speed/peak_memory_mib"),
                bars("Trainable parameters", "parameters/trainable"),
            ],
        ),
    ]
    colours = {} if where.experiment is None else _colours(where.experiment, strategies)
    return ws.Workspace(
        entity=where.entity,
        project=where.project,
        name=_title(where),
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            filters=_fits(where),
            groupby=[ws.Metric(_GROUP)],
            order=[ws.Ordering(ws.Summary(score), ascending=not is_better_higher(metric))],
            group_colors=colours,
        ),
    )


def _fits(where: Address) -> list[Any]:
    """Filters that leave source stages and tests out."""
    ws = import_module("wandb_workspaces.workspaces")
    found = [ws.Metric("JobType") == "fit"]
    if where.experiment is not None:
        found.append(ws.Config("experiment") == where.experiment)
    return found


def _confusions(wr: Any) -> Any:
    return wr.CustomChart(
        query={"summaryTable": {"tableKey": "confusion_matrix_table"}},
        chart_name="wandb/confusion_matrix/v1",
        chart_fields={"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"},
        chart_strings={"title": "Confusion matrix"},
    )


def _colours(experiment: str, strategies: Sequence[str]) -> dict[object, object]:
    return {f"{experiment}/{name}": look.hex for name, look in looks(strategies).items()}


def report_of(
    where: Address, metric: str, comparison: Comparison, notes: Sequence[str] = ()
) -> Any:
    """The report: the table of `kora compare`, its verdicts, notes, and the panels of the view."""
    wr = import_module(_REPORTS)
    view = view_of(where, metric)
    left_out = [f"- {in_markdown(note)}" for note in notes]
    runs = wr.Runset(
        entity=where.entity,
        project=where.project,
        filters=_fits(where),
        groupby=[_GROUP],
    )
    return wr.Report(
        entity=where.entity,
        project=where.project,
        title=_title(where),
        description="Made by `kora dashboard`, which updates it.",
        blocks=[
            wr.MarkdownBlock("\n".join([comparison.to_markdown(), *left_out])),
            wr.PanelGrid(runsets=[runs], panels=view.sections[0].panels),
        ],
    )


def compared(folders: Sequence[Path], metric: str) -> tuple[Comparison, list[str]]:
    """The comparison of trained runs that were fetched from W&B, as `kora compare` makes it.

    And a sentence on each run that is left out.
    """
    from kora.compare.command import compare
    from kora.compare.compatibility import without_strays
    from kora.compare.grouping import grouping
    from kora.compare.selection import load_runs

    runs, unread = load_runs(folders)
    trained = [run for run in runs if run.result.stage == "fit"]
    agreeing, left_out = without_strays(trained, grouping("strategy", trained))
    return compare(agreeing, metric=f"test/{metric}"), [*unread, *left_out]


def shown(item: Any) -> str:
    """What would be saved, as JSON."""
    content: dict[str, Any] = item._to_model().model_dump(mode="json", by_alias=True)
    return json.dumps(content, indent=2)


def save_view(view: Any) -> str:
    """Make the view, or update it if an earlier call made it; returns its address.

    Raises:
        ValueError: There is no login, or no such project.
        RuntimeError: W&B does not answer.
    """
    internal = import_module("wandb_workspaces.workspaces.internal")
    require_server(f"{view.entity}/{view.project}", login=_NO_LOGIN)
    digest = hashlib.sha256(f"kora dashboard {view.name}".encode()).hexdigest()[:11]
    view._internal_name = f"nw-{digest}-v"
    try:
        found = internal.View.from_name(view.entity, view.project, view._internal_name)
        view._internal_id = found.id
    except ValueError as error:
        if "project" in str(error) and "not found.  Do you" in str(error):
            raise ValueError(_no_project(f"{view.entity}/{view.project}")) from error
    view.save()
    return str(view.url)


def save_report(report: Any) -> str:
    """Make the report, or update the one with the same title; returns its address.

    Raises:
        ValueError: There is no login, or no such project.
        RuntimeError: W&B does not answer.
    """
    import wandb

    path = f"{report.entity}/{report.project}"
    require_server(path, login=_NO_LOGIN)
    try:
        for one in wandb.Api().reports(path):
            if one.display_name == report.title:
                report.id = one.id
                break
    except (ValueError, wandb.errors.CommError) as error:
        raise ValueError(f"{_no_project(path)} ({first_line(error)})") from error
    report.save()
    return str(report.url)


def _no_project(path: str) -> str:
    return f"{path}: there is no such project in W&B, or you may not see it. Log a run first."


def _title(where: Address) -> str:
    return f"kora: {where.experiment or where.project}"
