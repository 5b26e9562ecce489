"""The README.md of an adapter folder, made only from what the run recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kora.adapters.hub import CARD
from kora.compare.command import compare
from kora.compare.comparison import Comparison
from kora.console.formats import baseline_name, format_metric
from kora.console.tables import in_markdown, markdown_table
from kora.reports.summary import evaluation_sentence, split_sizes
from kora.runs.adapter_config import read_adapter_config
from kora.runs.durable import write_text
from kora.runs.results import RESULTS_NAME, Run, RunResult, find_runs, read_results
from kora.tasks.adapter_record import recipe_of

__all__ = ["CARD", "model_card", "write_card"]


def write_card(
    folder: Path,
    result: RunResult | None = None,
    *,
    run: Path | None = None,
    where: str | None = None,
    licence: str | None = None,
) -> Path:
    """Write the card of an adapter folder; None as the result: the one of its run.

    `run` is the run folder; None: the folder above. `where` is the address in the lines that load
    it; None: the folder. `licence` is the adapter's.
    """
    record = read_adapter_config(folder)
    run = folder.parent if run is None else run
    if result is not None:
        result = RunResult.from_dict(result.to_dict())  # as it is read from its file
    elif (run / RESULTS_NAME).is_file():
        result = read_results(run)
    seeds = None if result is None else _over_seeds(run, result)
    text = model_card(record, result, seeds, where=where or str(folder), licence=licence)
    return write_text(folder / CARD, text)


def model_card(
    record: Mapping[str, Any],
    result: RunResult | None,
    seeds: Comparison | None = None,
    *,
    where: str,
    licence: str | None = None,
) -> str:
    """The card of an adapter folder as Markdown, with its run and the finished seeds.

    `where` is the address in the lines that load it.
    """
    adapter, backbone = record["adapter"], record["backbone"]
    name = adapter["class_path"].rpartition(".")[2] if result is None else result.strategy
    quoted = json.dumps(where, ensure_ascii=False)
    parts = [
        _head(record, result, name, licence),
        f"# {in_markdown(name)} on {in_markdown(backbone['name'])}",
        "\n\n".join(map(in_markdown, _what(record, result))),
        "## Load it",
        _example(record, quoted),
        _call(record),
        "## Intended use",
        _intended(record),
        "## Backbone",
        _backbone(record),
        *(["## Data and protocol", _data(result)] if result is not None else []),
        "## Results",
        _results(record, result, seeds),
        "## Adapter",
        _table(("argument", "value"), [(k, f"`{v}`") for k, v in adapter["init_args"].items()]),
        f"Written by kora {record['kora_version']}"
        + ("." if result is None else f", commit {result.commit or 'unknown'}, {result.created}."),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


#: By the name of a task: what the hub calls it, its main metrics, and what its outputs are.
_TASKS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "DepthTask": ("depth-estimation", ("test/rmse_m",), "depth in metres"),
    "SegmentationTask": ("image-segmentation", ("test/miou",), "the class of each pixel"),
    "DetectionTask": ("object-detection", ("test/map", "test/map_50"), "objects with their boxes"),
}
_CLASSES = ("image-classification", ("test/accuracy",), "")


def _kind(record: Mapping[str, Any]) -> str:
    """The name of the task, without its module."""
    return str((record.get("task") or {}).get("class_path")).rpartition(".")[2]


def _head(
    record: Mapping[str, Any], result: RunResult | None, name: str, licence: str | None
) -> str:
    """The head of a card, which the hub reads, as YAML."""
    from huggingface_hub import EvalResult, ModelCardData

    kind, metrics, _ = _TASKS.get(_kind(record), _CLASSES)
    known = {} if result is None else result.metrics
    values = {m.partition("/")[2]: known[m] for m in metrics if known.get(m) is not None}
    data = "unknown" if result is None else str(result.protocol.get("dataset", "unknown"))
    measured = {} if not values else {
        "model_name": name,
        "eval_results": [
            EvalResult(
                task_type=kind, dataset_type=data, dataset_name=data, dataset_split="test",
                metric_type=short, metric_value=value,
            )
            for short, value in values.items()
        ],
    }  # fmt: skip
    head = ModelCardData(
        library_name="kora",
        license=licence,
        pipeline_tag=kind,
        base_model=(record.get("weights") or {}).get("hub"),
        tags=["kora", "timm", "adapter", name],
        metrics=[metric.partition("/")[2] for metric in metrics],
        **measured,  # type: ignore[arg-type]
    )
    return f"---\n{head.to_yaml()}\n---"


def _example(record: Mapping[str, Any], quoted: str) -> str:
    lines = ["import kora", f"model = kora.load_adapter({quoted})"]
    if _kind(record) not in _TASKS:
        lines.append('prediction = model.predict("photo.jpg")')
        lines.append('print(f"{prediction.name}: {prediction.probability:.0%}")')
    if _kind(record) == "DetectionTask":
        lines.append('for found in model.detect("photo.jpg"):')
        lines.append('    print(f"{found.name}: {found.score:.2f} at {found.box}")')
    return "```python\n" + "\n".join(lines) + "\n```"


def _intended(record: Mapping[str, Any]) -> str:
    if _kind(record) == "SegmentationTask":
        return (
            "Pictures like those it was trained on, of the classes above. Each pixel gets one of "
            "them, whatever it shows."
        )
    if _kind(record) == "DetectionTask":
        return (
            "Pictures like those it was trained on, with objects of the classes above. Objects of "
            "other classes are missed or take a wrong name, and the scores are not calibrated."
        )
    if _kind(record) == "DepthTask":
        return (
            "Depth of scenes like those it was trained on, in metres. Other cameras, ranges and "
            "places give other errors than the results below."
        )
    return (
        "Pictures like those it was trained on, of the classes above. It names one of them "
        "whatever a picture shows, and its probabilities are not calibrated."
    )


def _what(record: Mapping[str, Any], result: RunResult | None) -> list[str]:
    of = _TASKS.get(_kind(record), _CLASSES)[2]
    names = record.get("class_names") or []
    what = of or (f"{len(names)} classes" if names else "classes")
    text = (
        f"An adapter and a head for {what}, on a vision transformer of timm that is not included."
    )
    if record["adapter"]["class_path"] == "kora.adapters.FullFineTune":
        text = f"A fully fine-tuned vision transformer of timm and a head for {what}."
    if result is not None and "trainable" in result.parameters:
        head = result.parameters.get("head")
        of_head = f", {head:,} of them in the head" if head is not None else ""
        text += f" {result.parameters['trainable']:,} numbers were trained{of_head}."
    if result is not None and result.source is not None:
        experiment = result.source.get("experiment")
        of = f" of the experiment {experiment}" if experiment else ""
        text += f" It started from an adapter{of}."
    if names:
        shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        return [text, f"Classes: {shown}."]
    return [text]


def _call(record: Mapping[str, Any]) -> str:
    recipe = recipe_of(record)
    how = "made upright and RGB"
    if recipe.size is not None:
        cut = {
            "crop": "cut to its centre",
            "stretch": "stretched",
            "cover": "scaled to cover",
            "contain": "scaled to fit inside, and filled up with grey,",
            None: "taken",
        }[recipe.fit]
        how += f", {cut} at {recipe.size[0]}x{recipe.size[1]} pixels"
    if _kind(record) == "DetectionTask":
        return (
            '`model.detect("photo.jpg")` gives the objects in one picture, the best first, with '
            "boxes x1, y1, x2, y2 in its own pixels. `model(images)` gives for each of the uint8 "
            "images (B, 3, H, W) a dict of `boxes` (n, 4), `scores` and `labels` (n,). Each is "
            f"{how} as in training, then resized and normalised for the backbone. `kora predict` "
            "writes COCO's json and pictures of a folder of images."
        )
    if _kind(record) == "SegmentationTask":
        return (
            "`model(images).argmax(1)` gives the class of each pixel (B, H, W), for uint8 images "
            f"(B, 3, H, W) of any size. Each is {how} as in training, then resized and normalised "
            "for the backbone. `kora predict` writes masks of a folder of images."
        )
    if _kind(record) == "DepthTask":
        return (
            "`model(images)` gives metres (B, H, W), for uint8 images (B, 3, H, W) of any size. "
            f"Each is {how} as in training, then resized and normalised for the backbone."
        )
    return (
        '`model.predict("photo.jpg", top_k=3)` gives names and probabilities: of a path, a PIL '
        "image, an array, a tensor, a list of these, or a folder. `model(images)` gives logits of "
        f"uint8 images (B, 3, H, W). Each is {how} as in training, then resized and normalised "
        "for the backbone."
    )


def _backbone(record: Mapping[str, Any]) -> str:
    backbone, weights = record["backbone"], record.get("weights") or {}
    licence = weights.get("licence")
    size = backbone.get("image_size")
    side = "x".join(map(str, size)) if isinstance(size, list) else f"{size}x{size}"
    full = record["adapter"]["class_path"] == "kora.adapters.FullFineTune"
    rows = [
        ("name", f"`{backbone['name']}`"),
        ("weights", f"`{weights.get('source', 'not recorded')}`"),
        (f"SHA-256 of {'these' if full else 'the frozen'} weights", f"`{backbone['sha256']}`"),
        ("image size", f"{side} pixels"),
        ("licence of the weights", f"{licence} (as timm has it)" if licence else "unknown"),
    ]
    note = "Training began with them; the folder holds all weights as they were afterwards."
    return _table(("", ""), rows) + (
        f"\n\n{note}" if full else "\n\nOther weights are refused when it is loaded."
    )


def _data(result: RunResult) -> str:
    protocol = result.protocol
    subset = {k: v for k, v in (protocol.get("subset") or {}).items() if v is not None}
    rows = [
        ("data", str(protocol.get("dataset", "not recorded"))),
        ("images", ", ".join(split_sizes(protocol)) or "not recorded"),
        ("training subset", ", ".join(f"{k} {v}" for k, v in subset.items())),
        ("augmentation", str(protocol.get("augment") or "none")),
        ("SHA-256 of the data", f"`{protocol.get('data_sha256', 'not recorded')}`"),
        ("evaluation", evaluation_sentence(protocol) or ""),
        ("splits", "accepted although degenerate" if protocol.get("allow_degenerate") else ""),
    ]
    return _table(("", ""), [row for row in rows if row[1]])


def _results(record: Mapping[str, Any], result: RunResult | None, seeds: Comparison | None) -> str:
    if result is None:
        rows = [(k, format_metric(k, v)) for k, v in (record.get("metrics") or {}).items()]
        return (
            _table(("metric", "value"), rows)
            if rows
            else "There are no results next to this folder."
        )
    kinds = [kind for kind, scores in result.baselines.items() if scores]
    found: list[tuple[str, ...]] = []
    for metric, value in result.metrics.items():
        stage, _, name = metric.partition("/")
        if stage != "test":
            continue
        beside = [format_metric(metric, result.baselines[kind].get(name)) for kind in kinds]
        found.append((metric, format_metric(metric, value), *beside))
    heads = ("metric", f"seed {result.seed}", *map(baseline_name, kinds))
    text = _table(heads, found) if found else "The test was not run."
    group = None if seeds is None else seeds.groups[0]
    if group is None or len(group.seeds) < 2:
        return f"{text}\n\nOne seed (n = 1): the spread between seeds is not known."
    assert seeds is not None
    half = group.half_width
    spread = "" if half is None else f" ± {format_metric(seeds.metric, half)}"
    return (
        f"{text}\n\nThe weights here are those of seed {result.seed}. Over the {len(group.seeds)} "
        f"seeds that were finished when this was written, the mean of {seeds.metric} is "
        f"{format_metric(seeds.metric, group.mean)}{spread} (95 % t-interval)."
    )


def _over_seeds(run: Path, result: RunResult) -> Comparison | None:
    """This run compared over the finished seeds of its strategy; None if they do not match."""
    strategy = run.parent.parent
    if run.parent.name != f"seed{result.seed}":
        return None
    try:
        others = [folder for folder in _finished(strategy) if folder != run]
        runs = [*(Run(folder, read_results(folder)) for folder in others), Run(run, result)]
        same = [one for one in runs if one.result.settings == result.settings]
        return compare([one for one in same if one.result.stage == result.stage])
    except (ValueError, RuntimeError):
        return None


def _finished(strategy: Path) -> list[Path]:
    try:
        return find_runs([strategy])
    except ValueError:  # there is none yet
        return []


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return "\n".join(markdown_table(heads, rows, left=1 if heads[0] else len(heads)))
