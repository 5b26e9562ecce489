"""Checks of the published numbers of the KoRA paper, and of the runs that repeat them."""

from __future__ import annotations

from collections.abc import Sequence

from kora.analysis.cka import biased_on_noise
from kora.analysis.layer_cka import FEW
from kora.analysis.one_class import f1_of_one_class, fits_one_class
from kora.paper.cka import cka_value
from kora.paper.table import PaperSheet
from kora.runs.results import Run

__all__ = ["checks"]

_ACCURACY, _F1 = "test/accuracy", "test/weighted_f1"
_RMSE, _ABS_REL, _SHARE = "test/rmse_m", "test/abs_rel", "parameters/percent"
_WIDTH = 768  # of ViT-B, the backbone of the paper
_ROUNDING = 1e-6  # torchmetrics counts in float32
_EQUAL_CKA = 1e-6


def checks(sheet: PaperSheet) -> list[str]:
    """Sentences on what the numbers of a table reveal about how they were measured."""
    metrics = sheet.table.metrics
    said: list[str] = []
    if {_ACCURACY, _F1} <= set(metrics):
        said += _one_class(sheet)
    if {_RMSE, _ABS_REL} <= set(metrics):
        said += _metres(sheet)
    if _SHARE in metrics:
        said += _shares(sheet)
    if "cka/biased" in metrics:
        said += _frozen(sheet)
    return said + _audits(sheet)


def _one_class(sheet: PaperSheet) -> list[str]:
    """Compares published pairs, and those of the runs, with F1 = 2a/(1+a)."""
    pairs = [
        (row.published[_ACCURACY].value, row.published[_F1].value)
        for row in sheet.table.rows
        if {_ACCURACY, _F1} <= set(row.published)
    ]
    fitting = [pair for pair in pairs if fits_one_class(*pair)]
    said = []
    if pairs:
        shown = ", ".join(f"{accuracy} -> {f1}" for accuracy, f1 in fitting)
        said.append(
            f"Published F1 is 2a/(1+a) of the published accuracy a, to the digit, in "
            f"{len(fitting)} of {len(pairs)} rows ({shown}): the test set held one true class."
        )
    for column, words in (("as_published", "As published, here"), ("honest", "Honest runs")):
        runs = [r for r in sheet.runs(column) if {_ACCURACY, _F1} <= set(r.result.metrics)]
        away = [_away(run) for run in runs]
        if away:
            same = sum(distance <= _ROUNDING for distance in away)
            said.append(
                f"{words}: F1 is 2a/(1+a) in {same} of {len(away)} runs; the distance is "
                f"{min(away):.2g} to {max(away):.2g}."
            )
    return said


def _away(run: Run) -> float:
    accuracy, f1 = run.result.metrics[_ACCURACY], run.result.metrics[_F1]
    return abs(f1 - f1_of_one_class(accuracy))


def _metres(sheet: PaperSheet) -> list[str]:
    """Bounds the distances: E|e|/g <= sqrt(E e^2) sqrt(E 1/g^2) (Cauchy-Schwarz)."""
    said = []
    for row in sheet.table.rows:
        if {_RMSE, _ABS_REL} <= set(row.published):
            rmse, abs_rel = (row.published[key].value for key in (_RMSE, _ABS_REL))
            metres = float(rmse) / float(abs_rel)
            said.append(
                f"{row.method}: RMSE {rmse} with AbsRel {abs_rel} cannot both be in metres. By the "
                f"inequality of Cauchy and Schwarz, the root mean square of 1/depth would be "
                f"{1 / metres:.1f} a metre or more: rooms whose surfaces lie {metres:.1f} m from "
                "the camera."
            )
    return said


def _shares(sheet: PaperSheet) -> list[str]:
    """Whether the share of parameters, counted here, rounds to what was printed."""
    rows = [
        (e.row.published[_SHARE].value, found.mean)
        for e in sheet.entries
        if e.metric == _SHARE and _SHARE in e.row.published
        if (found := e.cells["as_published"].measured) is not None
    ]
    if not rows:
        return []
    same = sum(f"{share:.{len(printed.partition('.')[2])}f}" == printed for printed, share in rows)
    return [
        f"The published share of parameters comes out to the digit in {same} of {len(rows)} rows."
    ]


def _frozen(sheet: PaperSheet) -> list[str]:
    said = [
        f"The biased estimate on {FEW} images is {biased_on_noise(_WIDTH, images=FEW):.3f} for "
        f"features of width {_WIDTH} that have nothing in common; the unbiased one is 0."
    ]
    for column, words in (("as_published", "As published, here"), ("honest", "Honest runs")):
        side = [r for r in sheet.runs(column) if r.result.strategy.startswith("KoRA-side")]
        if side:
            same = sum(_is_frozen(run) for run in side)
            said.append(
                f"{words}: CKA of the side network is that of the frozen backbone in {same} of "
                f"{len(side)} runs."
            )
    return said


def _is_frozen(run: Run) -> bool:
    mine, frozen = (
        cka_value(run.folder, "cka/unbiased", name) for name in ("within_run", "within_frozen")
    )
    return mine is not None and frozen is not None and abs(mine - frozen) <= _EQUAL_CKA


def _audits(sheet: PaperSheet) -> list[str]:
    """What the audit reported before these runs, and allow_degenerate let pass."""
    found: dict[str, int] = {}
    runs: Sequence[Run] = sheet.runs("as_published")
    majority = [run.result.baselines.get("majority", {}).get("accuracy") for run in runs]
    blind = [accuracy for accuracy in majority if accuracy is not None]
    for run in runs:
        for problem in run.result.audit.get("problems", ()):
            found[str(problem)] = found.get(str(problem), 0) + 1
    said = []
    if found and blind:
        said.append(
            "As published, here: a predictor that sees no image, and always names the most "
            f"frequent class of training, has an accuracy of {max(blind):.2%}.".replace("%.", " %.")
        )
    return said + [
        f"The audit of {number} of {len(runs)} runs as published: {problem}"
        for problem, number in found.items()
    ]
