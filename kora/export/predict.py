"""`kora predict RUN --images FOLDER`: predictions of a run for a folder of images.

Shapes: B images, H and W pixels of an image, h and w of the depth head.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from datamodules.loading import begin_worker
from kora.console.tables import text_cell, visible
from kora.export.box_files import BoxFiles
from kora.export.options import predict_parser
from kora.heads.detection import Boxes
from kora.reports.palette import palette_image, palette_of
from kora.runs.durable import expand, plainly, write_atomically
from kora.tasks import ClassificationTask, DepthTask, DetectionTask, SegmentationTask
from kora.tasks.image_files import Batch, ImageFiles, collate, image_files
from kora.tasks.load import AdaptedModel, load_adapter, named_device
from kora.tasks.merging import merged
from kora.tasks.multi import MultiTask

__all__ = ["predict_command"]

_LIMIT_M = 65.535  # of 16 bits in millimetres

Rows = dict[int, list[str]]


def predict_command(args: Sequence[str]) -> None:
    """Parse the options, predict, write, and name images that could not be read."""
    own = predict_parser().parse_args(args)
    if not own.images:
        raise ValueError("--images is empty. Name a folder of images, or one; . for this folder.")
    options = {"weights": own.weights, "device": named_device(own.device)}
    shared = None if len(own.run) == 1 else MultiTask(own.run, **options)
    models = {"": load_adapter(own.run[0], **options)} if shared is None else shared.models_by_name
    folder = expand(own.images)
    out = expand(own.out or "predictions")
    outs = {name: out / name if name else out for name in models}
    for name, model in models.items():
        _check_out(model, outs[name], own.depth_format)
    files, others = image_files(folder)
    above = folder if folder.is_dir() else folder.parent
    names = [path.relative_to(above).as_posix() for path in files]
    heads = {name: _heads(model, own.top_k) for name, model in models.items()}
    errors: dict[int, str] = {}
    first = next(iter(models.values()))
    with ExitStack() as stack:
        tables = {
            name: stack.enter_context(
                _Table(outs[name] / "predictions.csv", ["file", *columns, "error"], len(files))
            )
            for name, columns in heads.items()
        }
        boxes = {
            name: stack.enter_context(BoxFiles(model, outs[name], files, names))
            for name, model in models.items()
            if isinstance(model.task, DetectionTask)
        }
        if shared is None:
            stack.enter_context(merged(first.backbone, first.adapter))
        for batch in _batches(first, files, own.batch_size, own.num_workers):
            errors |= batch.errors
            outputs = _outputs(shared, batch)
            for name, model in models.items():
                rows: Rows = {place: [""] * len(heads[name]) for place in batch.errors}
                if batch.places and name in boxes:
                    rows |= boxes[name].add(batch, _boxes(model, outputs.get(name), batch))
                elif batch.places:
                    rows |= _rows(model, outputs.get(name), batch, names, outs[name], own)
                table = tables[name]
                table.add([[names[k], *rows[k], errors.get(k, "")] for k in sorted(rows)])
    for name, model in models.items():
        if isinstance(model.task, SegmentationTask):
            from kora.reports.figures_segmentation import legend

            legend(_mask_names(model), _palette(model), outs[name] / "legend.png")
    for name in models:
        _say(outs[name] / "predictions.csv", folder, names, errors, others)
    for name in boxes:
        print(f"Boxes: {outs[name] / 'predictions.json'}; images.json beside it is their data set.")


@torch.inference_mode()
def _outputs(shared: MultiTask | None, batch: Batch) -> dict[str, Any]:
    """What each head gives for a batch that runs share; empty for a single run."""
    if shared is None or not batch.places:
        return {}
    return shared.outputs(batch.images.to(shared.backbone.mean.device))


@torch.inference_mode()
def _boxes(model: AdaptedModel, output: Any, batch: Batch) -> list[Boxes]:
    """The boxes of each image of a batch, in its own pixels; `output` is of a shared pass."""
    assert isinstance(model.task, DetectionTask)
    levels: Any = model.task(batch.images.to(model.device)) if output is None else output
    return model.task.own_boxes(levels, batch.sizes, model.recipe)


@torch.inference_mode()
def _rows(
    model: AdaptedModel, output: Tensor | None, batch: Batch, names: Sequence[str], out: Path,
    own: argparse.Namespace,
) -> Rows:  # fmt: skip
    """The rows of the images of a batch, and their maps or masks; `output` is of a shared pass."""
    task, images = model.task, batch.images.to(model.device)
    if isinstance(task, DepthTask):
        depth_Bhw = task.flipped_mean(images) if output is None else output
        return _write_depth(task, depth_Bhw, batch, names, out, own.depth_format)
    if isinstance(task, SegmentationTask):
        found = (
            task.masks_of({"image": images}, batch.sizes)
            if output is None
            else (
                task.answer(output[row : row + 1], size)[0].argmax(dim=0).to(torch.uint8)
                for row, size in enumerate(batch.sizes)
            )
        )
        return _write_masks(model, found, batch, names, out)
    ranked = model.ranked(images, own.top_k) if output is None else model.named(output, own.top_k)
    return {
        place: [text for one in top for text in (one.name, f"{one.probability:.6f}")]
        for place, top in zip(batch.places, ranked, strict=True)
    }


def _check_out(model: AdaptedModel, out: Path, depth_format: str) -> None:
    """Check the output folder before any work is done."""
    if out.suffix == ".csv" or (out.exists() and not out.is_dir()):
        raise ValueError(f"--out {out} is a file; name a folder, for predictions.csv in it.")
    if isinstance(model.task, ClassificationTask):
        return
    stopped = (out / "predictions.csv.part").exists()  # an earlier command, which this one repeats
    if out.is_dir() and any(out.iterdir()) and not stopped:
        kinds = {DepthTask: "depth maps", SegmentationTask: "masks", DetectionTask: "pictures"}
        kind = kinds[type(model.task)]
        raise ValueError(f"--out {out} is there already. Name a new folder for the {kind}.")
    if not isinstance(model.task, DepthTask):
        return
    farthest = model.task.protocol.max_depth_m
    if depth_format == "png" and farthest > _LIMIT_M:
        raise ValueError(
            f"This run predicts depths up to {farthest:g} m, but 16 bits of millimetres end at "
            f"{_LIMIT_M} m. Use --depth_format npy."
        )


def _batches(
    model: AdaptedModel, files: Sequence[Path], size: int, workers: int
) -> Iterator[Batch]:
    task = model.task
    slides = isinstance(task, SegmentationTask) and task.protocol.window == "slide"
    loader: DataLoader[Any] = DataLoader(
        ImageFiles(
            files,
            model.recipe,
            size=None if slides else model.backbone.size,
            interpolation=model.backbone.interpolation,
        ),
        batch_size=1 if slides else size,
        num_workers=min(workers, len(files)),
        collate_fn=collate,
        worker_init_fn=begin_worker,
    )
    with tqdm(total=len(files), desc="Predicting", unit="image", disable=None) as bar:
        for batch in loader:
            yield batch
            bar.update(len(batch.places) + len(batch.errors))


def _write_depth(
    task: DepthTask, depth_Bhw: Tensor, batch: Batch, names: Sequence[str], out: Path, form: str
) -> Rows:
    """Write a file for each image, named after the image with its suffix, so names are unique."""
    rows: Rows = {}
    for row, (place, size) in enumerate(zip(batch.places, batch.sizes, strict=True)):
        depth_HW = task.at_size(depth_Bhw[row : row + 1].float(), size)[0].cpu()
        name = f"{names[place]}.{form}"
        write_atomically(out / name, lambda path, d=depth_HW: _write_map(path, d, form))  # type: ignore[misc]
        low, high = float(depth_HW.min()), float(depth_HW.max())
        rows[place] = [name, f"{low:.3f}", f"{high:.3f}"]
    return rows


def _write_masks(
    model: AdaptedModel, found: Iterable[Tensor], batch: Batch, names: Sequence[str], out: Path
) -> Rows:
    """Write a palette PNG for each image, named as a depth map; rows name its largest class."""
    rows: Rows = {}
    classes, palette = _mask_names(model), _palette(model)
    for place, mask_HW in zip(batch.places, found, strict=True):
        name, mask = f"{names[place]}.png", mask_HW.cpu().numpy()
        write_atomically(
            out / name,
            lambda path, m=mask: palette_image(m, palette).save(path, format="PNG"),  # type: ignore[misc]
        )
        counts = np.bincount(mask.ravel(), minlength=len(classes))
        largest = int(counts.argmax())
        rows[place] = [name, classes[largest], f"{counts[largest] / mask.size:.4f}"]
    return rows


def _mask_names(model: AdaptedModel) -> list[str]:
    assert isinstance(model.task, SegmentationTask)
    count = model.task.num_classes or 0
    names = model.record.get("class_names") or []
    return [str(n) for n in names] if len(names) == count else [f"class {k}" for k in range(count)]


def _palette(model: AdaptedModel) -> list[tuple[int, int, int]]:
    return palette_of(len(_mask_names(model)), model.record.get("palette"))


def _heads(model: AdaptedModel, top_k: int) -> list[str]:
    """The columns between the file and the error."""
    if isinstance(model.task, DepthTask):
        return ["depth_file", "min_m", "max_m"]
    if isinstance(model.task, SegmentationTask):
        return ["mask_file", "largest_class", "share"]
    if isinstance(model.task, DetectionTask):
        return list(BoxFiles.heads)
    return _class_heads(model, top_k)


def _write_map(path: Path, depth_HW: Tensor, form: str) -> None:
    metres: NDArray[np.float32] = depth_HW.numpy()
    with path.open("wb") as file:
        if form == "npy":
            np.save(file, metres)
        else:
            Image.fromarray((metres * 1000).round().astype(np.uint16)).save(file, format="PNG")


def _class_heads(model: AdaptedModel, top_k: int) -> list[str]:
    """Two columns a class: class_name and probability, then class_name_2, probability_2 ..."""
    classes = min(top_k, getattr(model.task, "num_classes", 1))
    ends = ["", *(f"_{number}" for number in range(2, classes + 1))]
    return [head + end for end in ends for head in ("class_name", "probability")]


class _Table:
    """A CSV file that grows as `<path>.part`, and is renamed to `path` when it is complete.

    Raises:
        OSError: It cannot be written.
    """

    def __init__(self, path: Path, heads: Sequence[str], images: int) -> None:
        self.path = path.resolve()  # a link stays a link
        self.part = self.path.with_name(f"{path.name}.part")
        self.images = images
        self.rows = -1  # the head does not count
        with self._told():
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(  # noqa: SIM115
                self.part,
                "a",
                newline="",
                encoding="utf-8",
                errors="backslashreplace",
                opener=plainly,
            )
            self._take()
            self._file.truncate(0)
        self.add([heads])

    def _take(self) -> None:
        """Lock the file, if the file system has locks."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.part))
        except (BlockingIOError, FileNotFoundError):
            mine = False
        except OSError:
            return  # no locks here
        if not mine:  # or it was renamed in between
            self._file.close()
            raise RuntimeError(
                f"Another kora predict is writing {self.part}. Wait for it, or name another --out."
            )

    def add(self, rows: Sequence[Sequence[str]]) -> None:
        """Pass rows to the system, so that they survive this process."""
        with self._told():
            csv.writer(self._file).writerows([text_cell(cell) for cell in row] for row in rows)
            self._file.flush()
        self.rows += len(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._file, self._told():
            os.fsync(self._file.fileno())
            if kind is None:
                os.replace(self.part, self.path)  # while the lock is held
        if kind is not None:
            print(
                f"kora: stopped: the rows of {self.rows} of {self.images} images are in "
                f"{self.part}.",
                file=sys.stderr,
            )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"{self.part} cannot be written: {error.strerror or error}. Make room, or name "
                "another file or folder (--out)."
            ) from error


def _say(
    table: Path, folder: Path, names: Sequence[str], errors: dict[int, str], others: int
) -> None:
    """Print what was written, and which images could not be read.

    Raises:
        RuntimeError: If not one image could be read.
    """
    for place in sorted(errors):
        print(f"kora: {visible(errors[place])}", file=sys.stderr)
    read = len(names) - len(errors)
    if not read:
        raise RuntimeError(
            f"None of the {len(names)} images in {folder} could be read; {table} says why."
        )
    print(f"Predictions: {table} ({read} of {len(names)} images)")
    if errors:
        print(
            f"{len(errors)} could not be read; they have a row with the error, and no prediction."
        )
    if others:
        print(f"{others} other files in {folder} are no images, by their names, and were left out.")
