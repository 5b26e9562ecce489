"""Summary of one run: the table at its end, and its evaluation protocol in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from kora.console.formats import baseline_name, format_metric
from kora.console.tables import literal
from kora.runs.results import RunResult

__all__ = ["evaluation_sentence", "headline", "split_sizes", "summary_table"]


def headline(protocol: Mapping[str, Any], backbone: str) -> str:
    """Data, backbone and evaluation protocol in one line, as far as they are stated."""
    parts = [str(protocol.get("dataset", "")), backbone]
    parts += split_sizes(protocol)
    subset = protocol.get("subset") or {}
    if subset.get("per_class"):
        parts.append(f"{subset['per_class']} a class")
    if subset.get("fraction"):
        parts.append(f"{100 * subset['fraction']:g} % of the training set")
    parts.append(evaluation_sentence(protocol) or "")
    return " · ".join(part for part in parts if part)


def evaluation_sentence(protocol: Mapping[str, Any]) -> str | None:
    """How predictions were measured, in one line; None if the protocol does not say.

    That of an unknown task, or of another version, is listed key by key.
    """
    evaluation = protocol.get("evaluation")
    if not evaluation:
        return None
    from kora.metrics.detection_protocol import DetectionProtocol
    from kora.metrics.protocol import DepthProtocol  # it imports torch
    from kora.metrics.segmentation_protocol import SegmentationProtocol

    kinds = {"window": SegmentationProtocol, "nms_iou": DetectionProtocol, "crop": DepthProtocol}
    kind: Any = next((kind for key, kind in kinds.items() if key in evaluation), DepthProtocol)
    try:
        return str(kind(**evaluation).sentence())
    except (TypeError, ValueError):
        return ", ".join(f"{key} {value}" for key, value in evaluation.items())


def split_sizes(protocol: Mapping[str, Any]) -> list[str]:
    """`50 train`, `20 val`, `100 test`; `40 of 100 test` if only some were evaluated."""
    evaluated = protocol.get("evaluated_images") or {}
    return [
        f"{evaluated[split]:,} of {images:,} {split}"
        if split in evaluated
        else f"{images:,} {split}"
        for split, images in (protocol.get("sizes") or {}).items()
    ]


def summary_table(result: RunResult) -> Table:
    """Every test metric of a run, next to its baselines, with the evaluation below."""
    parameters, seconds = result.parameters, result.seconds
    notes = [f"seed {result.seed}", str(result.backbone.get("name", "unknown backbone"))]
    if "trainable" in parameters:
        share = f" ({parameters['percent']:.2f} %)" if "percent" in parameters else ""
        notes.append(f"{parameters['trainable']:,} trainable{share}")
    notes += [f"{phase} {value:.1f} s" for phase, value in seconds.items()]
    if result.peak_memory_mib is not None:
        notes.append(f"peak {result.peak_memory_mib:,.0f} MiB")
    table = Table(
        title=literal(f"{result.experiment} · {result.strategy}"),
        caption=literal(" · ".join(notes)),
        title_justify="left",
        caption_justify="left",
        min_width=60,
    )
    wanted = "val" if result.stage == "validate" else "test"
    kinds = [kind for kind, scores in result.baselines.items() if scores]
    if not any(metric.startswith(f"{wanted}/") for metric in result.metrics):
        wanted, kinds = "best_val", []  # not tested; the baselines are of the test set
    table.add_column("metric")
    for heading in ("result", *map(baseline_name, kinds)):
        table.add_column(literal(heading), justify="right")
    for metric, value in result.metrics.items():
        stage, _, name = metric.rpartition("/")
        if stage != wanted:
            continue
        scores = (format_metric(metric, result.baselines[kind].get(name)) for kind in kinds)
        table.add_row(literal(metric), f"[bold]{format_metric(metric, value)}[/bold]", *scores)
    page = Table.grid()  # the sentence may be wider than the table, which would wrap its captions
    page.add_row(table)
    sentence = evaluation_sentence(result.protocol)
    if sentence is not None:
        page.add_row(f"[dim italic]Evaluation: {literal(sentence)}[/]")
    if result.protocol.get("evaluated_images"):
        sizes = ", ".join(split_sizes(result.protocol))
        page.add_row(f"[bold]Not all images were evaluated: {literal(sizes)}.[/]")
    return page
