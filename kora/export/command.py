"""`kora export`: write a finished run for other libraries, after a comparison of outputs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL
from safetensors import SafetensorError

from kora import __version__
from kora.export import onnx_graph as export_onnx
from kora.export import peft_adapter as export_peft
from kora.export import timm_weights as export_timm
from kora.export.check import Written
from kora.export.options import TOLERANCES, export_parser
from kora.export.prepare import PREPARE
from kora.runs.adapter_config import run_of
from kora.runs.durable import expand, let_be_read
from kora.tasks.load import AdaptedModel, load_adapter
from kora.tasks.multi import MultiTask

__all__ = ["RECORD", "export", "export_command", "export_several"]

RECORD = "export.json"

_FORMATS: dict[str, Callable[[AdaptedModel, Path], Written]] = {
    "peft": export_peft.write,
    "timm": export_timm.write,
    "onnx": export_onnx.write,
}


def export_command(args: Sequence[str]) -> None:
    """Parse the options, export, and print what was written and the largest difference."""
    own = export_parser().parse_args(args)
    if len(own.run) > 1:
        if own.format != "onnx" or own.out is None:
            raise ValueError(
                "Several runs become one graph: kora export RUN RUN --format onnx --out FOLDER."
            )
        out = expand(own.out)
        written = export_several(
            MultiTask(own.run, weights=own.weights), out, tolerance=own.tolerance
        )
    else:
        model = load_adapter(own.run[0], weights=own.weights)
        default = run_of(model.folder) / "export" / own.format
        out = default if own.out is None else expand(own.out)
        written = export(model, own.format, out, tolerance=own.tolerance)
    if written.difference is None:
        print("Not compared with the run's model: peft is not installed (pip install peft).")
    else:
        print(
            f"Largest difference of outputs on the probe images: {written.difference:.2g} "
            f"(the largest output is {written.largest:.3g})"
        )
    print(f"Written: {out}\n\nTo load it:")
    for line in (*written.load, *written.use):
        print(f"  {line.replace('FOLDER', str(out))}")


def export(model: AdaptedModel, form: str, out: Path, *, tolerance: float | None = None) -> Written:
    """Write one format into a folder, which appears whole or not at all.

    An earlier export there is replaced.

    Raises:
        ValueError: If the strategy has no counterpart in this format, or the folder holds anything
            but an export of this format.
        OSError: If it cannot be written.
        RuntimeError: If the outputs differ by more than the tolerance.
    """

    def record(written: Written, limit: float) -> dict[str, Any]:
        return _record(model, form, written, limit)

    return _placed(lambda folder: _FORMATS[form](model, folder), record, form, out, tolerance)


def export_several(model: MultiTask, out: Path, *, tolerance: float | None = None) -> Written:
    """Write one ONNX graph with an output for each task; errors are those of `export`."""

    def record(written: Written, limit: float) -> dict[str, Any]:
        tasks = {
            name: {"adapter": one.record["adapter"], "class_names": one.class_names}
            for name, one in model.models_by_name.items()
        }
        first = next(iter(model.models_by_name.values()))
        return {**_record(first, "onnx", written, limit), "tasks": tasks}

    return _placed(
        lambda folder: export_onnx.write_several(model, folder), record, "onnx", out, tolerance
    )


def _placed(
    write: Callable[[Path], Written],
    record: Callable[[Written, float], dict[str, Any]],
    form: str,
    out: Path,
    tolerance: float | None,
) -> Written:
    """Write into a temporary folder, compare, and rename it to `out`."""
    limit = TOLERANCES[form] if tolerance is None else tolerance
    if not 0 < limit < 1:
        raise ValueError(f"--tolerance {limit}: expected a share above 0 and below 1.")
    if out.absolute() == Path.cwd():
        raise ValueError("--out is the folder you are in, and an export replaces it. Name another.")
    if out.is_symlink():
        raise ValueError(f"{out} is a symbolic link. Name the folder itself with --out.")
    if out.exists() and not (out / RECORD).is_file() and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"{out} is there and is no export. Name another folder with --out.")
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        written = write(temporary)
        _check(written, form, limit)
        text = json.dumps(record(written, limit), indent=2, allow_nan=False) + "\n"
        (temporary / RECORD).write_text(text, encoding="utf-8")
        for file in filter(Path.is_file, temporary.iterdir()):
            let_be_read(file)
        if out.exists():
            # An import of prepare.py leaves its compiled form there.
            _require_only(out, {"__pycache__", *(path.name for path in temporary.iterdir())})
            shutil.rmtree(out)
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"{out} cannot be written: {error}. Make room, or name another folder with --out."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return written


def _require_only(out: Path, names: set[str]) -> None:
    """Refuse to replace a folder that holds more than an export writes."""
    others = sorted(path.name for path in out.iterdir() if path.name not in names)
    if others:
        raise ValueError(
            f"{out} holds {others[0]} too, which this export does not write and would delete. Move "
            "it away, or name another folder with --out."
        )


def _check(written: Written, form: str, limit: float) -> None:
    difference = written.difference
    if difference is not None and not difference <= limit * max(1.0, written.largest):
        raise RuntimeError(
            f"--format {form}: outputs differ from the run's model by up to {difference:.2g}, with "
            f"a largest output of {written.largest:.3g}; the tolerance is {limit:g} of that. "
            "Nothing was written. Accept more with --tolerance, or use kora.load_adapter."
        )


def _record(model: AdaptedModel, form: str, written: Written, limit: float) -> dict[str, Any]:
    """The record next to the weights: the model, its classes, and how to prepare images."""
    return {
        "format": form,
        "kora_version": __version__,
        "backbone": model.record["backbone"],
        "adapter": model.record["adapter"],
        "class_names": model.class_names,
        "preprocessing": {"code": PREPARE, "pillow": PIL.__version__, **model.preprocessing},
        **written.details,
        "largest_difference": written.difference,
        "largest_output": written.largest,
        "tolerance": limit,
        "load": list(written.load),
        "use": list(written.use),
    }
