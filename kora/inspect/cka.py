"""`kora cka RUN [RUN2]`: how alike the layers of models are, before and after adaptation."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from kora import __version__
from kora.analysis.cka import LEAST_IMAGES, biased_on_noise
from kora.analysis.layer_cka import Batch, Comparison, LayerCKA, Model, compare_layers
from kora.backbone.layers import Kind, LayerReader, layer_names
from kora.console.tables import literal
from kora.inspect.data import has_changed, run_datamodule, shuffled_batches, test_loader
from kora.inspect.figures import cka_map
from kora.inspect.options import ADVISED_IMAGES, cka_parser
from kora.runs.adapter_config import run_of
from kora.runs.durable import expand, out_folder, write_text
from kora.runs.results import RunResult, read_results
from kora.tasks.load import AdaptedModel, load_adapter, load_backbone, named_device

__all__ = ["cka_command"]

SCHEMA = 1
_KINDS: dict[Kind, str] = {"mean": "the mean of the patch tokens", "cls": "the CLS token"}
_NOISE_IMAGES = 32  # the batch size at which CKA is often reported


@dataclass(frozen=True)
class _Run:
    """A finished run and what reads its layers."""

    folder: Path
    result: RunResult
    model: AdaptedModel
    reader: LayerReader

    def starts_from(self) -> tuple[Any, ...]:
        """A key that runs share if their frozen backbones have the same features."""
        backbone = self.model.backbone
        known = self.model.record["backbone"]
        scale = (*backbone.mean.flatten().tolist(), *backbone.std.flatten().tolist())
        return backbone.name, known["sha256"], backbone.size, backbone.levels, scale


def cka_command(args: Sequence[str]) -> None:
    """Parse the options, read the layers, write, and show."""
    own = cka_parser().parse_args(args)
    _check(own)
    device = named_device(own.device)
    folders = [run_of(expand(path)) for path in (own.run, own.run2) if path is not None]
    if len(folders) == 2 and folders[0].resolve() == folders[1].resolve():
        raise ValueError(f"RUN and RUN2 are both {folders[0]}. Name two runs, or one alone.")
    results = [read_results(folder) for folder in folders]
    runs = [_open(*pair, own, device) for pair in zip(folders, results, strict=True)]
    models, readers = _models(runs, own, device)
    datamodule = run_datamodule(folders[0])
    loader = test_loader(datamodule)
    images = _number(own.images, len(loader.dataset))  # type: ignore[arg-type]
    batches, left_out = shuffled_batches(
        loader, images, batch_size=own.batch_size, least=LEAST_IMAGES, seed=own.seed
    )
    out = folders[0] / "cka" if own.out is None else expand(own.out)
    out.mkdir(parents=True, exist_ok=True)  # an unwritable disk fails before the work
    warnings = _warnings(runs, datamodule, images - left_out)
    for text in warnings:
        print(f"kora: warning: {text}", file=sys.stderr)
    found = compare_layers(models, _read(readers, batches, images - left_out), seed=own.seed)
    notes = found.remarks()
    if left_out:
        notes.append(
            f"The last batch held {left_out} of the images, fewer than the {LEAST_IMAGES} that the "
            "unbiased estimate needs, and was left out."
        )
    if images - left_out >= ADVISED_IMAGES:
        notes.append(_of_bias(runs[0].model.backbone.width))
    _show(found, notes, own.features)
    for path in _write(found, [*warnings, *notes], own, folders, out):
        print(f"wrote {path}")


def _check(own: argparse.Namespace) -> None:
    for key, value in (("--batch_size", own.batch_size), ("--images", own.images)):
        if value is not None and value < LEAST_IMAGES:
            raise ValueError(
                f"{key} {value}: the unbiased estimate needs {LEAST_IMAGES} images a batch or more."
            )
    if own.out is not None:
        out_folder(own.out)


def _open(folder: Path, result: RunResult, own: argparse.Namespace, device: torch.device) -> _Run:
    model = load_adapter(folder, weights=own.weights, device=device)
    return _Run(
        folder, result, model, LayerReader(model.backbone, own.features, model.task.features)
    )


def _models(
    runs: Sequence[_Run], own: argparse.Namespace, device: torch.device
) -> tuple[list[Model], list[LayerReader]]:
    """The runs, then the frozen backbones that they start from: one if they share it."""
    models: list[Model] = []
    readers = [run.reader for run in runs]
    frozen: dict[tuple[Any, ...], Model] = {}
    for run, number, label in zip(runs, ("", "2"), _labels(runs), strict=False):
        backbone = run.model.backbone
        layers = tuple(layer_names(backbone))
        origin = run.starts_from()
        if origin not in frozen:
            key, name = f"frozen{number}", f"frozen {backbone.name}"
            known = {k: run.model.record["backbone"][k] for k in ("name", "sha256")}
            frozen[origin] = Model(key, name, layers, key, {"backbone": known})
            start = load_backbone(run.folder, weights=own.weights, device=device)
            start.levels = backbone.levels
            readers.append(LayerReader(start, own.features))
        named = {key: getattr(run.result, key) for key in ("experiment", "strategy", "seed")}
        about = {"folder": str(run.folder), **named}
        models.append(Model(f"run{number}", label, layers, frozen[origin].key, about))
    return models + list(frozen.values()), readers


def _labels(runs: Sequence[_Run]) -> list[str]:
    """Short names that differ."""
    ways: tuple[Callable[[_Run], str], ...] = (
        lambda run: f"{run.result.strategy}, seed {run.result.seed}",
        lambda run: f"{run.result.experiment}, {run.result.strategy}, seed {run.result.seed}",
        lambda run: "/".join(run.folder.resolve().parts[-4:]),
        lambda run: str(run.folder.resolve()),
    )
    named = ([way(run) for run in runs] for way in ways)
    return next(names for names in named if len(set(names)) == len(runs))


def _number(wanted: int | None, there: int) -> int:
    """The number of images to take.

    Raises:
        ValueError: There are fewer than `wanted`, or too few at all.
    """
    if wanted is not None and wanted > there:
        raise ValueError(
            f"--images {wanted}: the test set of RUN holds {there} images. Leave --images out to "
            "take them all."
        )
    if there < LEAST_IMAGES:
        raise ValueError(
            f"The test set of RUN holds {there} images; the unbiased estimate needs "
            f"{LEAST_IMAGES} or more."
        )
    return there if wanted is None else wanted


def _warnings(runs: Sequence[_Run], datamodule: Any, images: int) -> list[str]:
    said = []
    if images < ADVISED_IMAGES:
        said.append(
            f"{images} images; {ADVISED_IMAGES} or more are advised. "
            + _of_bias(runs[0].model.backbone.width)
        )
    if has_changed(datamodule, runs[0].result):
        said.append(
            f"The test images are not those that {runs[0].folder} was tested on: the data have "
            "changed since."
        )
    data = [run.result.protocol.get("data_sha256") for run in runs]
    if len(set(data)) > 1:
        said.append("RUN2 is a run on other data; both are shown the test images of RUN.")
    return said


def _of_bias(width: int) -> str:
    value = biased_on_noise(width, images=_NOISE_IMAGES)
    return (
        "Features that have nothing in common get 0 here. The biased estimate of one batch of "
        f"{_NOISE_IMAGES} independent images would be {value:.3f} at this width ({width})."
    )


def _read(readers: Sequence[LayerReader], batches: Any, images: int) -> Iterator[Batch]:
    with tqdm(total=images, desc="Reading layers", unit="image", disable=None) as bar:
        for batch in batches:
            yield [reader(batch["image"]) for reader in readers]
            bar.update(len(batch["image"]))


def _show(found: LayerCKA, notes: Sequence[str], kind: Kind) -> None:
    """Print the diagonals, one row per layer, and a control: the frozen backbone with itself."""
    shown = [c for c in found.comparisons if c.low is not None and c.first != c.second]
    title = f"CKA of {_KINDS[kind]}, {found.images:,} images"
    table = Table("layer", title=title, title_justify="left")
    for comparison in shown:
        other = comparison.second
        against = "frozen" if other.key == other.frozen else other.label  # its name may be long
        table.add_column(literal(f"{comparison.first.label}\nvs {against}"), justify="right")
    between = " " if len(shown) == 1 else "\n"  # three columns would not fit otherwise
    for layer in max((model.layers for model in found.models), key=len):
        table.add_row(layer, *(_cell(comparison, layer, between) for comparison in shown))
    table.add_section()
    controls = [np.diag(found[f"within_{c.first.frozen}"].cka) for c in shown]
    table.add_row(
        "control: frozen\nvs itself, least",
        *(f"{np.nanmin(diagonal):.4f}" for diagonal in controls),
    )
    Console().print(table)
    drawn = "minibatches" if found.groups == found.batches else "groups of minibatches"
    print(
        f"In brackets: 95 % intervals, a bootstrap over {found.groups} {drawn}. They are about "
        "other images, not about other seeds."
    )
    for note in notes:
        print(note)


def _cell(comparison: Comparison, layer: str, between: str) -> str:
    """The value of a layer of both models, with its interval if it has one."""
    if layer not in comparison.first.layers:
        return ""
    assert comparison.low is not None
    assert comparison.high is not None
    place = comparison.first.layers.index(layer)
    value, low, high = comparison.cka[place, place], comparison.low[place], comparison.high[place]
    if not np.isfinite(value):
        return "–"
    interval = f"{between}\\[{_digits(low)}, {_digits(high)}]" if np.isfinite(low) else ""
    return f"{_digits(value)}{interval}"


def _digits(value: float) -> str:
    """Four digits; 1.0000 only for what is 1 up to float64's rounding."""
    return ">0.9999" if 0.99995 <= value < 1 - 1e-9 else f"{value:.4f}"


def _write(
    found: LayerCKA,
    notes: Sequence[str],
    own: argparse.Namespace,
    folders: Sequence[Path],
    out: Path,
) -> list[Path]:
    settings = {
        "data_of": str(folders[0]),
        "features": own.features,
        "batch_size": own.batch_size,
        "images": own.images,
        "seed": own.seed,
        "estimator": "unbiased HSIC, ratio of sums over minibatches, linear kernel, float64",
        "interval": "95 %, percentile bootstrap over minibatches",
    }
    record = {
        "schema": SCHEMA,
        "kora_version": __version__,
        "settings": settings,
        **found.to_dict(),
        "notes": list(notes),
    }
    written = [
        write_text(out / "cka.json", json.dumps(record, indent=1, allow_nan=False) + "\n"),
        write_text(out / "cka.csv", found.to_csv()),
    ]
    for comparison in found.comparisons:
        written.append(
            cka_map(
                comparison.cka,
                comparison.first.layers,
                comparison.second.layers,
                out / f"cka_{comparison.name}.png",
                row_label=comparison.first.label,
                column_label=comparison.second.label,
                title=f"CKA {comparison.title}: {_KINDS[own.features]}, {found.images:,} images",
            )
        )
    return written
