"""The record of a run in W&B: its columns, its panels, its adapter, and all of results.json."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from types import MappingProxyType
from typing import Any

import numpy as np
from lightning import Trainer
from numpy.typing import NDArray
from rich.console import Console

from kora.loggers.wandb_run import PANELS_SHARE, BoundedWandb, finish_wandb
from kora.loggers.wandb_runs import KEPT_FILES, RESULTS_KEY
from kora.loggers.wandb_server import server_answers, wandb_base_url
from kora.reports.base import Report
from kora.runs.results import RESULTS_NAME, RunResult

__all__ = ["columns", "confusion_rows", "end_wandb"]

_MOST_CELLS = 10_000  # rows of a table that W&B draws


def end_wandb(
    trainer: Trainer,
    console: Console,
    pictures: Sequence[Path] = (),
    *,
    folder: Path,
    result: RunResult | None = None,
    rates: Mapping[str, float] = MappingProxyType({}),
    report: Report | None = None,
) -> None:
    """Log what belongs to the finished run in the W&B runs of a trainer, and end them.

    No error here stops the run, which is on disk already. After `predict` there is no result.
    `rates` are images a second by phase; the report gives the panels.
    """
    for logger in trainer.loggers:
        if not isinstance(logger, BoundedWandb):
            continue
        steps: list[Callable[[], None]] = [partial(_log_pictures, logger, pictures)]
        if result is not None:
            steps.insert(0, partial(_log_record, logger, result, folder, rates))
        failed = _attempt(logger, steps)
        steps = []
        if report is not None:
            steps += [
                partial(_log_confusions, logger, report),
                partial(_log_samples, logger, report),
            ]
        if result is not None and result.stage == "fit" and logger.upload_adapter:
            steps.append(partial(_log_adapter, logger, result, folder / "adapter"))
        # To log these, W&B asks the server, and would wait for it.
        answers = logger.gone or not logger.is_online or server_answers(wandb_base_url())
        if not logger.is_online:
            failed += _attempt(logger, steps)
        elif answers:
            failed += _attempt_within(logger, steps, PANELS_SHARE * logger.finish_s)
        elif steps:
            failed.append("panels and the adapter are left out, as the server does not answer")
        ended = finish_wandb(logger, answers=answers)
        words = [*dict.fromkeys([] if logger.gone else failed), ended]
        said = "; ".join(word for word in words if word is not None)
        if said:
            console.print(f"W&B:        {said}", soft_wrap=True, highlight=False, markup=False)


def _attempt(logger: BoundedWandb, steps: Sequence[Callable[[], None]]) -> list[str]:
    """Do each step as long as W&B works, even if others fail; returns what failed."""
    failed = []
    for step in steps:
        if logger.gone:
            break
        try:
            step()
        except Exception as error:  # whatever it is, the run itself is complete
            name, reason = type(error).__name__, str(error).partition("\n")[0]
            words = f"{name}: {reason}" if reason else name
            failed.append(f"not everything could be logged ({words})")
    return failed


def _attempt_within(
    logger: BoundedWandb, steps: Sequence[Callable[[], None]], seconds: float
) -> list[str]:
    """As `_attempt`, but given up after some seconds: W&B waits long for each answer."""
    failed: list[str] = []
    thread = Thread(target=lambda: failed.extend(_attempt(logger, steps)), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return [f"panels and the adapter were not all logged within {seconds:.0f} s"]
    return failed


def columns(result: RunResult, rates: Mapping[str, float]) -> dict[str, float]:
    """Columns of a table of runs besides the metrics: the best validation, parameters, speed."""
    parameters = {
        f"parameters/{key}": result.parameters.get(key)
        for key in ("trainable", "total", "percent", "head")
    }
    speed = {
        **{f"speed/{phase}_seconds": seconds for phase, seconds in result.seconds.items()},
        **{f"speed/{phase}_images_per_second": round(rate, 3) for phase, rate in rates.items()},
        "speed/peak_memory_mib": result.peak_memory_mib,
    }
    best = {name: value for name, value in result.metrics.items() if name.startswith("best_")}
    return {k: v for k, v in (best | parameters | speed).items() if v is not None}


def confusion_rows(
    counts_KK: NDArray[np.int64], names: Sequence[str]
) -> list[tuple[str, str, int]]:
    """True class, predicted class and number of images, as many as W&B draws.

    All cells for up to 100 classes. For more classes, the cells that are not 0, and only the
    largest if these are too many.
    """
    size = len(counts_KK)
    places = np.arange(size * size)
    if size * size > _MOST_CELLS:
        order = np.argsort(-counts_KK.ravel(), kind="stable")[:_MOST_CELLS]
        places = np.sort(order[counts_KK.ravel()[order] > 0])
    cells = ((int(place) // size, int(place) % size) for place in places)
    return [(names[i], names[j], int(counts_KK[i, j])) for i, j in cells]


def _log_record(
    logger: BoundedWandb, result: RunResult, folder: Path, rates: Mapping[str, float]
) -> None:
    run = logger.experiment
    text = json.dumps(result.to_dict(), allow_nan=False)
    logger.log_hyperparams({RESULTS_KEY: text})
    found = columns(result, rates)
    # In the history too: W&B's sweeps look there first.
    logger.log_metrics({name: found[name] for name in found if name.startswith("best_")})
    run.summary.update(found)
    for name in (RESULTS_NAME, *KEPT_FILES):
        if (folder / name).is_file():
            # A copy in W&B's folder: W&B would make a link, which breaks if the run is moved.
            copy = shutil.copy(folder / name, run.dir)
            run.save(str(copy), base_path=run.dir, policy="now", glob=False)


def _log_pictures(logger: BoundedWandb, pictures: Sequence[Path]) -> None:
    for path in pictures:
        logger.log_image(f"pictures/{path.stem}", [str(path)])


def _log_confusions(logger: BoundedWandb, report: Report) -> None:
    import wandb

    confusion = getattr(report, "confusion", None)
    if confusion is not None:
        cells = confusion_rows(confusion, report.datamodule.class_names)
        table = wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=cells)
        fields: dict[str, Any] = {str(name): name for name in table.columns}
        chart = wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "Test"})
        logger.experiment.log({"confusion_matrix": chart})


def _log_samples(logger: BoundedWandb, report: Report) -> None:
    import wandb

    samples = report.sample_rows()
    if samples:
        rows = [
            [wandb.Image(v) if isinstance(v, np.ndarray) else v for v in row.values()]
            for row in samples
        ]
        logger.experiment.log({"test_samples": wandb.Table(columns=list(samples[0]), data=rows)})


def _log_adapter(logger: BoundedWandb, result: RunResult, adapter: Path) -> None:
    import wandb

    name = f"{result.experiment}-{result.strategy}-seed{result.seed}"
    artifact = wandb.Artifact(
        re.sub(r"[^\w.-]", "_", name, flags=re.ASCII)[:128],
        type="model",
        description=f"{result.strategy} on {result.backbone['name']}, the best checkpoint of a run",
        metadata={
            "experiment": result.experiment,
            "strategy": result.strategy,
            "seed": result.seed,
            "backbone": result.backbone["name"],
            "backbone_sha256": result.backbone["sha256"],
            "metrics": result.to_dict()["metrics"],
            "parameters": result.parameters,
            "created": result.created,
        },
    )
    files = (path for path in adapter.rglob("*") if path.is_file() and not path.is_symlink())
    for path in sorted(files):
        # Without a copy: nothing changes the files, and a whole model may be large.
        artifact.add_file(
            str(path.resolve()),  # so that it can be uploaded from any folder
            str(path.relative_to(adapter)),
            policy="immutable",
            skip_cache=True,
        )
    logger.experiment.log_artifact(artifact)
