"""`kora inspect RUN`: what the adapter of a finished run has learned, by block and site."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kora import __version__
from kora.adapters import KoRA, describe
from kora.analysis.quantity import Place, Quantity, Spectrum
from kora.console.tables import csv_text
from kora.inspect.data import image_batches, run_data, spread, training_batch
from kora.inspect.figures import place_maps, spectrum_maps
from kora.inspect.options import inspect_parser
from kora.inspect.readings import (
    ReadOut,
    gradient_quantities,
    measured_gradients,
    needs_images,
    read_out,
    require_readable,
)
from kora.runs.adapter_config import run_of
from kora.runs.durable import out_folder, write_text
from kora.tasks.load import AdaptedModel, load_adapter, named_device
from kora.training.node_gradients import GRADIENTS_NAME, read_gradients

__all__ = ["inspect_command"]

_SCHEMA = 1
_FAINT = 1e-6


def inspect_command(args: Sequence[str]) -> None:
    """Parse the options, read the adapter, write the read-outs, and print what stands out."""
    own = inspect_parser().parse_args(args)
    out = None if own.out is None else out_folder(own.out)
    model = load_adapter(own.run, weights=own.weights, device=named_device(own.device))
    require_readable(model.adapter)
    run = run_of(model.folder)
    read, images = _read(model, run, own)
    out = out or run / "inspect"
    written = _write(out, _record(model, run, read, own.split, images), read, model.adapter.label)
    for line in [*_findings(model, read), *read.notes]:
        print(f"kora: {line}")
    print(f"Read-outs: {', '.join(path.name for path in written)} in {out}")


def _read(model: AdaptedModel, run: Path, own: argparse.Namespace) -> tuple[ReadOut, int]:
    """The read-out, and the number of images behind it."""
    strategy = model.adapter
    kept = read_gradients(run) if isinstance(strategy, KoRA) else None
    if not needs_images(strategy):
        return read_out(model, lambda: iter(())), 0
    data, configured = run_data(run)
    places = spread(len(data.indices(own.split)), own.images)
    if not len(places):
        raise ValueError(f"The run has no {own.split} images. Use the other --split.")

    def images() -> Iterator[Tensor]:
        return image_batches(data, own.split, places, size=own.batch_size)

    read = read_out(model, images)
    if isinstance(strategy, KoRA):
        if kept is not None:
            found, scalars = gradient_quantities(strategy, kept)
            read.quantities += found
            read.scalars |= scalars
        else:
            for name in ("label_smoothing", "loss"):  # an adapter folder does not record them
                if hasattr(configured, name):
                    setattr(model.task, name, getattr(configured, name))
            batch = training_batch(data, own.batch_size)
            gradient, composed = measured_gradients(model, strategy, batch)
            read.quantities.append(gradient)
            read.scalars["gradient_final_weights_composed"] = composed
            read.notes.append(
                f"{run} has no {GRADIENTS_NAME} (its adapter was frozen, or an older version of "
                "kora trained it), so the gradient was measured with the final weights on "
                f"{len(batch['image'])} training images; that of the first step is unknown."
            )
    return read, len(places)


def _record(
    model: AdaptedModel, run: Path, read: ReadOut, split: str, images: int
) -> dict[str, Any]:
    return {
        "schema": _SCHEMA,
        "kora_version": __version__,
        "run": str(run),
        "strategy": model.adapter.label,
        "adapter": describe(model.adapter),
        "backbone": {key: model.record["backbone"][key] for key in ("name", "sha256")},
        "split": split if images else None,
        "images": images,
        "scalars": read.scalars,
        "notes": read.notes,
        "quantities": [
            {
                "name": one.name,
                "title": one.title,
                "definition": one.definition,
                "places": [
                    {"block": block, "site": site, "value": value}
                    for (block, site), value in one.values.items()
                ],
            }
            for one in read.quantities
        ],
    }


def _write(out: Path, record: dict[str, Any], read: ReadOut, label: str) -> list[Path]:
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    written = [
        write_text(out / "inspect.json", text),
        write_text(out / "inspect.csv", _table(read)),
    ]
    seen = f", {record['images']} {record['split']} images" if record["images"] else ""
    title = f"{label} on {record['backbone']['name']}{seen}"
    if read.fusion is not None:
        read.fusion.write_table(out)
        return [*written, *read.fusion.pictures(out)]
    maps = [one for one in read.quantities if isinstance(one, Quantity)]
    spectra = [one for one in read.quantities if isinstance(one, Spectrum)]
    if maps:
        written.append(place_maps(maps, out / "inspect.png", title=title))
    if spectra:
        written.append(spectrum_maps(spectra, out / "singular_values.png", title=title))
    return written


def _table(read: ReadOut) -> str:
    """One row per place, one column per quantity or per value of a spectrum."""
    columns: dict[str, Mapping[Place, float | None]] = {}
    for one in read.quantities:
        if isinstance(one, Quantity):
            columns[one.name] = one.values
            continue
        for number in range(max(map(len, one.values.values()))):
            columns[f"{one.name}_{number + 1}"] = {
                place: values[number]
                for place, values in one.values.items()
                if number < len(values)
            }
    places = dict.fromkeys(place for one in read.quantities for place in one.values)
    rows = [
        {"block": block, "site": site}
        | {
            name: f"{value:.6g}"
            for name, values in columns.items()
            if (value := values.get((block, site))) is not None
        }
        for block, site in places
    ]
    return csv_text(rows, ["block", "site", *columns])


def _findings(model: AdaptedModel, read: ReadOut) -> list[str]:
    """Lines on how many nodes of a composition contribute, and on their redundancy."""
    if not isinstance(model.adapter, KoRA):
        return []
    lines = []
    for one in read.quantities:
        if one.name == "contribution" or one.name.startswith("gradient"):
            assert isinstance(one, Quantity)
            lines.append(f"{one.title}: {_summed_up(list(one.values.values()))}")
    return [*lines, _redundancy(read.scalars)]


def _redundancy(scalars: Mapping[str, float | None]) -> str:
    """A line on how similar the nodes' vectors are, on the images and in training."""
    ends, start = "_redundancy", "gradient_"
    found = {
        name.removeprefix(start).removesuffix(ends).replace("_", " "): value
        for name, value in scalars.items()
        if name.startswith(start) and name.endswith(ends)
    }
    steps = ", ".join(
        f"{value:.2f} at {'the last step that was read' if step == 'last' else step}"
        for step, value in found.items()
    )
    said = f"redundancy, mean |cos(p_i, p_j)|: {scalars['redundancy']:.2f} on the images"
    return f"{said}; in training {steps}." if steps else f"{said}."


def _summed_up(values: Sequence[float | None]) -> str:
    norms = [value for value in values if value is not None]
    if not any(norms):
        nothing = "the readout (or B) was still zero, or nothing gets through"
        return f"0 at every node: {nothing}." if norms else "not finite at any node."
    most, zero = max(norms), sum(norm == 0 for norm in norms)
    faint = sum(norm <= _FAINT * most for norm in norms)
    return (
        f"largest {most:.2g}; {faint} of {len(values)} nodes have less than a millionth of it, "
        f"{zero} of them exactly 0."
    )
