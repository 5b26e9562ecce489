"""`kora adapt` for images with masks: look, try what is cached, then what is not, test the best.

Each trial is an ordinary run of `kora fit`; those that an earlier call finished are used again.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from datamodules import SegmentationFolder
from datamodules.recipe import ImageRecipe
from kora.adaptation.candidates import Candidate
from kora.adaptation.plan import RUN_S
from kora.adaptation.progress import Progress
from kora.adaptation.runs import StoppedError, run_of
from kora.adaptation.words import LEVEL, duration, percent
from kora.analysis.pooled import mean_iou, pooled_difference, pooled_interval
from kora.backbone.vit import Backbone, patch_of, usual_size
from kora.console.say import say
from kora.reports.audit_segmentation import SegmentationAudit
from kora.reports.pages import page_of
from kora.reports.segmentation import SegmentationReport
from kora.runs.durable import write_text
from kora.runs.outcomes import Outcomes, read_outcomes
from kora.runs.processes import Stop
from kora.runs.results import read_results
from kora.runs.trust import build
from kora.tasks import SegmentationTask
from kora.tasks.callbacks import time_over_float32
from kora.tasks.load import AdaptedModel, load_adapter, named_device

__all__ = ["AdaptedMasks", "adapt_masks"]

PAGE = "index.html"
_SIDE = 322  # pixels; the area at which the backbone runs is that of a square of this side
_ASPECT_OF = 50  # images whose proportions are read
_BATCH = 8
_STEPS = (200, 600)  # at least and at most, of a fit; epochs follow
_PASSES = 2.5  # forward passes that a training step through the backbone costs
#: On cached features; the first is the rival of all others.
_CACHED = (
    Candidate("LinearProbe", ("adapters/linear_probe",), "a linear head on four levels"),
    Candidate(
        "LinearProbe-queries",
        ("adapters/linear_probe", "heads/segmentation_queries"),
        "a query for each class reads four levels",
    ),
)
#: Through the backbone, the most worthwhile first.
_THROUGH = (Candidate("LoRA", ("adapters/lora",), "a linear head on four levels"),)
#: Learning rates of the head of each, in the order in which they are tried.
_HEAD_LRS = ((1e-2, 3e-3), (3e-3, 1e-3), (3e-2, 1e-2))
_THROUGH_LRS = ((3e-3, 1e-3), (3e-3, 3e-4))  # of head and adapter


@dataclass(frozen=True)
class AdaptedMasks:
    """The result of `adapt` for images with masks.

    Args:
        folder: Folder of everything that was made.
        run: The run of the best strategy, with its adapter.
        strategy: Name of the best strategy.
        miou: Mean IoU over the test images, which were used once.
        interval: Its 95 % interval, over test images.
        sentence: The result in words, with the linear probe and a prediction that sees no image.
        page: An HTML page for a browser.
    """

    folder: Path
    run: Path
    strategy: str
    miou: float
    interval: tuple[float, float]
    sentence: str
    page: Path

    @cached_property
    def model(self) -> AdaptedModel:
        """The model, loaded from its run."""
        return load_adapter(self.run)


class Trial(NamedTuple):
    """A strategy with its learning rates; mIoU and seconds once it has run."""

    candidate: Candidate
    head_lr: float
    lr: float | None
    miou: float = math.nan
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Name of its run."""
        rates = f"{self.head_lr:g}" if self.lr is None else f"{self.head_lr:g}_{self.lr:g}"
        return f"trial_{self.candidate.name}_{rates}"


def adapt_masks(
    place: Path,
    home: Path,
    *,
    backbone: str,
    weights: str,
    minutes: float | None,
    seed: int,
    dry_run: bool,
    stop: Stop,
) -> AdaptedMasks | None:
    """Find the best strategy for a folder of images and masks, and train the model.

    Raises:
        ValueError: There is nothing to tell apart, or a mask cannot be used.
        RuntimeError: Weights cannot be fetched, or a run failed.
        StoppedError: A signal came.
    """
    whole = _Masks(place, home, backbone, weights, minutes, seed, stop)
    return whole.run(dry_run=dry_run)


class _Masks:
    """One call of `adapt_masks`."""

    def __init__(
        self,
        place: Path,
        home: Path,
        backbone: str,
        weights: str,
        minutes: float | None,
        seed: int,
        stop: Stop,
    ) -> None:
        self.began = time.monotonic()
        self.place, self.home, self.minutes = place, home, minutes
        self.seed, self.stop = seed, stop
        size = _size_for(place, backbone, weights)
        self.size = size
        self.backbone = {"name": backbone, "weights": weights, "image_size": list(size)}
        self.data: dict[str, Any] = {
            "root": str(place.absolute()), "image_size": list(size), "val_fraction": 0.2,
            "batch_size": _BATCH, "num_workers": 1,
        }  # fmt: skip
        self.precision = "32-true"
        self.names: list[str] = []

    def run(self, *, dry_run: bool) -> AdaptedMasks | None:
        """Run all steps."""
        audit, images = self._look()
        epochs = max(math.ceil(_STEPS[0] * _BATCH / images), min(20, _STEPS[1] * _BATCH // images))
        pass_s, through_s = self._times(images, epochs)
        fit_s = 2 * RUN_S + 0.1 * pass_s * epochs
        trials = [
            Trial(one, rate, None)
            for rates in _HEAD_LRS
            for one, rate in zip(_CACHED, rates, strict=True)
        ]
        cached_s = pass_s + len(trials) * fit_s
        say("What will be tried, and about how long it takes here:")
        say(f"  1. one pass of the frozen backbone over all images: {duration(pass_s)}")
        for number, one in enumerate(_CACHED, start=2):
            say(
                f"  {number}. {one.name} ({one.why}), {len(_HEAD_LRS)} fits: "
                f"{duration(len(_HEAD_LRS) * fit_s)}"
            )
        say(f"  {len(_CACHED) + 2}. train the best and the linear probe again, test")
        how = "as the minutes allow" if self.minutes else "only with --minutes"
        for one in _THROUGH:
            say(f"  {len(_CACHED) + 3}. {one.name} ({one.why}): {duration(through_s)} a fit, {how}")
        if dry_run:
            return None
        with Progress(max(cached_s + 2 * fit_s, 60 * (self.minutes or 0))) as progress:
            done = []
            for number, trial in enumerate(trials):
                progress.part(f"trying {trial.candidate.name}", fit_s + pass_s * (number == 0))
                done.append(self._tried(trial, epochs))
            for rates in _THROUGH_LRS:
                for one in _THROUGH:
                    left = 60 * (self.minutes or 0) - (time.monotonic() - self.began)
                    expected = max([through_s, *(t.seconds for t in done if t.candidate is one)])
                    if left < 2 * expected + fit_s:  # it may have to be trained again
                        continue
                    progress.part(f"training {one.name} through the backbone", expected)
                    done.append(self._tried(Trial(one, *rates), epochs))
            best = max(done, key=lambda trial: trial.miou)
            rival = max(
                (t for t in done if t.candidate is _CACHED[0]), key=lambda trial: trial.miou
            )
            runs = {}
            for trial in dict.fromkeys((best, rival)):
                progress.part(f"testing {trial.candidate.name}", trial.seconds)
                config = self._config(trial, epochs, tests=True)
                runs[trial.candidate.name] = self._fitted(trial.candidate.name, config)
        return self._report(audit, done, best, runs)

    # -- parts ---------------------------------------------------------------------------------

    def _look(self) -> tuple[SegmentationAudit, int]:
        """The audit of the masks, and the number of training images."""
        data = SegmentationFolder(**self.data, seed=self.seed)
        data.setup_splits()
        self.names = data.class_names
        sizes = {part: len(data.indices(part)) for part in ("train", "val", "test")}
        task: Any = build(SegmentationTask, self._model(Trial(_CACHED[0], 1e-3, None)), origin="")
        audit = SegmentationReport(task, data).audit()
        assert audit is not None
        Console().print(audit.render())
        audit.check(allow_degenerate=False)
        made = "drawn here" if not data.layout.parts else "of the folder"
        say(
            f"{sizes['train']:,} images to train, {sizes['val']:,} to validate, {sizes['test']:,} "
            f"to test ({made})."
        )
        if not data.layout.parts:
            say(
                "If the images are frames of a few videos or places, neighbours are now on both "
                "sides: put whole ones into train/ and test/."
            )
        return audit, sizes["train"]

    def _times(self, images: int, epochs: int) -> tuple[float, float]:
        """Seconds of a pass over all images, and of a fit through the backbone."""
        name, weights = str(self.backbone["name"]), str(self.backbone["weights"])
        network = Backbone(name, weights=weights, image_size=self.size)
        network.to(named_device("auto"))
        batch = torch.zeros(2, 3, *network.size, dtype=torch.uint8, device=network.mean.device)
        with torch.inference_mode():
            network(batch)
            began = time.perf_counter()
            network(batch)
            each_s = (time.perf_counter() - began) / len(batch)
        ratio = 1.0
        if network.mean.device.type == "cpu":
            ratio = time_over_float32(torch.bfloat16)
        if ratio < 0.8:
            self.precision = "bf16-mixed"
            each_s *= ratio
        return each_s * images * 1.3, 2 * RUN_S + _PASSES * each_s * images * epochs

    def _tried(self, trial: Trial, epochs: int) -> Trial:
        """The trial with its validation mIoU."""
        began = time.monotonic()
        run = self._fitted(trial.name, self._config(trial, epochs, tests=False))
        result = read_results(run)
        seconds = max(time.monotonic() - began, result.seconds.get("fit", 0.0))
        miou = float(result.metrics["best_val/miou"])
        return trial._replace(miou=miou, seconds=seconds)

    def _fitted(self, name: str, config: Mapping[str, Any]) -> Path:
        run, why = run_of(self.home, name, config, seed=self.seed, stop=self.stop)
        if self.stop.signal is not None:
            raise StoppedError("stopped. Repeat the command to resume from here.")
        if run is None:
            raise RuntimeError(f"{name}: {why}. Repeat the command to resume from here.")
        return run

    def _model(self, trial: Trial) -> dict[str, Any]:
        optimizer = {"lr": trial.lr or trial.head_lr, "weight_decay": 0.01}
        return {
            "class_path": "kora.tasks.SegmentationTask",
            "init_args": {
                "backbone": dict(self.backbone),
                **trial.candidate.model,
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": optimizer},
                "head_lr": trial.head_lr,
                "feature_cache_folder": str(self.home / "features"),
            },
        }

    def _config(self, trial: Trial, epochs: int, *, tests: bool) -> dict[str, Any]:
        return {
            "experiment": self.home.name + "_trials" * (not tests),
            "runs_dir": str(self.home.parent),
            "seed_everything": self.seed,
            "leave_out_test": not tests,
            "model": self._model(trial),
            "data": {
                "class_path": "datamodules.SegmentationFolder",
                "init_args": {**self.data, "class_names": self.names},
            },
            "trainer": {
                "max_epochs": epochs,
                "check_val_every_n_epoch": max(1, epochs // 5),
                "precision": self.precision,
            },
            "wandb": {"mode": "disabled"},
        }

    # -- the answer ----------------------------------------------------------------------------

    def _report(
        self,
        audit: SegmentationAudit,
        done: Sequence[Trial],
        best: Trial,
        runs: Mapping[str, Path],
    ) -> AdaptedMasks:
        name, rival = best.candidate.name, _CACHED[0].name
        run = runs[name]
        areas = _areas(run)
        miou, interval = float(mean_iou(areas.sum(axis=0))), pooled_interval(areas, mean_iou)
        low, high = interval
        blind = read_results(run).baselines["mode_map"]["miou"]
        text = (
            f"{name} gives each pixel one of {len(self.names)} classes with a mean IoU of "
            f"{percent(miou)} on {len(areas):,} test images (95 % interval {percent(low)} to "
            f"{percent(high)}; the usual class of each place {percent(blind)}"
        )
        if name == rival:
            text += "). No other strategy was better by validation."
        else:
            theirs = _areas(runs[rival])
            other = float(mean_iou(theirs.sum(axis=0)))
            found = pooled_difference(areas[None], theirs[None], mean_iou)
            below, above = found.bootstrap
            points = (
                f"{100 * (miou - other):+.1f} points ({100 * below:+.1f} to {100 * above:+.1f})"
            )
            text += f"; a linear probe {percent(other)}). "
            if found.p < LEVEL and miou > other:
                text += f"Its lead over the linear probe, {points}, is more than chance."
            elif found.p < LEVEL:
                text += f"The linear probe is ahead on the test images: {points}."
            else:
                text += f"Its difference from the linear probe, {points}, may be chance."
        shown = [
            (run / "test_masks.png", "Test images, their masks, predictions and mistakes."),
            (run / "iou_by_class.png", "IoU of each class on the test images."),
        ]
        again = f"kora adapt {self.place} --backbone {self.backbone['name']}"
        if self.backbone["weights"] != "pretrained":
            again += f" --weights {self.backbone['weights']}"
        again += f" --out {self.home} --seed {self.seed} --minutes 60"
        html = page_of("kora.adaptation", "page_masks.html").render(
            name=self.place.resolve().name,
            sentence=text,
            run=run,
            commands=[
                ("predict", f"kora predict {run} --images FOLDER --out masks"),
                ("export", f"kora export {run} --format onnx"),
                ("continue with more minutes", again),
            ],
            tried=[
                {**trial._asdict(), "strategy": trial.candidate.name, "best": trial == best}
                for trial in sorted(done, key=lambda one: -one.miou)
            ],
            backbone=self.backbone["name"],
            minutes=(time.monotonic() - self.began) / 60,
            pictures=[(_inline(path), caption) for path, caption in shown],
            notes=[*audit.warnings, *_shares(audit)],
        )
        page = write_text(self.home / PAGE, html)
        return AdaptedMasks(self.home, run, name, miou, interval, text, page)


def _size_for(place: Path, backbone: str, weights: str) -> tuple[int, int]:
    """Height and width of the backbone: the usual proportions of the images, in whole patches."""
    side = usual_size(backbone, weights, most=_SIDE)
    patch = None if side is None else patch_of(backbone)
    if side is None or patch is None:
        return _SIDE, _SIDE  # the backbone says what is wrong with its name
    folder = next(p for p in (place / "images", *place.glob("*/images")) if p.is_dir())
    ratios = []
    for path in sorted(folder.rglob("*"))[:_ASPECT_OF]:
        if path.is_file():
            try:
                image = ImageRecipe().open(path)
            except RuntimeError:
                continue
            ratios.append(image.height / image.width)
    ratio = float(np.median(ratios)) if ratios else 1.0
    high, wide = side * math.sqrt(ratio), side / math.sqrt(ratio)
    return max(1, round(high / patch)) * patch, max(1, round(wide / patch)) * patch


def _areas(run: Path) -> Any:
    outcomes: Outcomes | None = read_outcomes(run)
    assert outcomes is not None, "a run of kora fit leaves its outcomes"
    assert outcomes.areas is not None
    return outcomes.areas


def _shares(audit: SegmentationAudit) -> list[str]:
    train = audit.splits["train"]
    shares = train.pixels / max(1, train.pixels.sum())
    listed = ", ".join(
        f"{name} {100 * share:.2g} %"
        for name, share in sorted(zip(audit.class_names, shares, strict=True), key=lambda p: -p[1])
    )
    return [f"Share of the training pixels: {listed}."]


def _inline(path: Path) -> str:
    with Image.open(path):  # or raises what is wrong with it
        pass
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
