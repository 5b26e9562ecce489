"""`kora adapt` for images with masks or boxes: look, try what is cached, then what is not, test.

Each trial is an ordinary run of `kora fit`; those that an earlier call finished are used again.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from datamodules.base import ImageDataModule
from datamodules.loading import visible_files
from datamodules.recipe import UnreadableImageError, upright_size
from kora.adaptation.call import Call
from kora.adaptation.candidates import Candidate
from kora.adaptation.pages import PAGE, inline_png
from kora.adaptation.plan import RUN_S, WORTH_IT, seconds_of
from kora.adaptation.progress import Progress
from kora.adaptation.result import Answer
from kora.adaptation.runs import finished_run, model_config, run_config
from kora.adaptation.words import Lead, answer, percent
from kora.analysis.pooled import SCORES, pooled_difference, pooled_interval
from kora.backbone.vit import patch_of, usual_size
from kora.console.formats import duration
from kora.console.say import say
from kora.console.tables import csv_text
from kora.reports.audit import Findings
from kora.reports.base import Report
from kora.reports.pages import page_of
from kora.runs.durable import write_text
from kora.runs.outcomes import read_outcomes
from kora.runs.results import read_results
from kora.runs.trust import build
from kora.tasks import AdapterTask
from kora.tasks.callbacks import time_over_float32
from kora.tasks.load import named_device
from kora.training.batched_fit import Setting

__all__ = ["Kind", "Trial", "Trials"]

_ASPECT_OF = 50  # images whose proportions are read
_BATCH = 8
_TIMED = 2  # images of a step that is timed
_ONLY_ONE = "No other strategy was tried: with --minutes, those that train on images are."


@dataclass(frozen=True)
class Kind:
    """A task of which `kora adapt` tries strategies.

    Args:
        task: The task.
        data: The data module that reads the folder.
        report: The report of the task, which audits the data.
        result: What `adapt` gives back; its last field is the score.
        metric: Name of the metric that chooses and is reported.
        column: That name, for people.
        layouts: The layouts that the data module finds, in words.
        images: A folder with images of the training part, from which their proportions are read.
        options: Further options of the data module for a folder.
        model: Further options of the task.
        cached: Strategies on cached features; the first is the rival of all others.
        on_images: Strategies that train on images, the most worthwhile first.
        side: Pixels; the area at which the backbone runs is that of a square of this side.
        steps: Steps of a fit, at least and at most; epochs follow.
        claim: From names of the classes and the score to what a strategy does, in words.
        guess: The baseline that sees no image, and that in words.
        python: How the loaded model is used in Python.
        predictions: Name of a folder for predictions.
        pictures: Pictures of a run for the page, with their captions.
        notes: Of the audit, for the page.
    """

    task: type[AdapterTask]
    data: type[ImageDataModule]
    report: type[Report]
    result: Callable[..., Answer]
    metric: str
    column: str
    layouts: Mapping[str, str]
    images: Callable[[Path], Path]
    options: Callable[[Path], Mapping[str, Any]]
    model: Mapping[str, Any]
    cached: Sequence[Candidate]
    on_images: Sequence[Candidate]
    side: int
    steps: tuple[int, int]
    claim: Callable[[Sequence[str], str], str]
    guess: tuple[str, str]
    python: str
    predictions: str
    pictures: Sequence[tuple[str, str]]
    notes: Callable[[Any], Sequence[str]]


class Trial(NamedTuple):
    """A strategy with its settings; score and seconds once it has run."""

    candidate: Candidate
    setting: Setting
    score: float = math.nan
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Name of its run, with the learning rate of the adapter if it is another."""
        rates = dict.fromkeys(self.setting[:2])
        return "_".join(["trial", self.candidate.name, *(f"{rate:g}" for rate in rates)])


class _Times(NamedTuple):
    """Expected seconds.

    Args:
        kept: Of the pass that caches the features of all images.
        fits: Of one fit of each strategy, by its name.
    """

    kept: float
    fits: Mapping[str, float]


class Trials:
    """One call of `kora adapt` for images with masks or boxes."""

    def __init__(self, kind: Kind, call: Call) -> None:
        self.kind, self.call = kind, call
        size = _size_for(kind.images(call.place), call.backbone, call.weights, most=kind.side)
        self.backbone = {"name": call.backbone, "weights": call.weights, "image_size": list(size)}
        self.options: dict[str, Any] = {
            "root": str(call.place.absolute()), "image_size": list(size), "val_fraction": 0.2,
            "batch_size": _BATCH, "num_workers": 1, **kind.options(call.place),
        }  # fmt: skip
        self.data: Any = kind.data(**self.options, seed=call.seed)
        self.precision = "32-true"
        self.epochs = 1

    def run(self, *, dry_run: bool) -> Answer | None:
        """Run all steps.

        Raises:
            ValueError: There is nothing to tell apart, a mask or box cannot be used, or the files
                are not those of earlier calls.
            RuntimeError: Weights cannot be fetched, or a run failed.
            StoppedError: A signal came.
        """
        audit = self._look()
        times = self._times()
        self._say_plan(times)
        if dry_run:
            return None
        self._require_same_data()
        self.call.keep_precision(self.precision)
        rival_s = times.fits[self.kind.cached[0].name]
        with Progress(self._total_s(times)) as progress:
            done: list[Trial] = []
            for trial in _in_turn(self.kind.cached):
                name = trial.candidate.name
                progress.part(f"trying {name}", times.fits[name] + times.kept * (not done))
                done.append(self._tried(trial))
            for trial in _in_turn(self.kind.on_images)[: self.call.most_fits]:
                name = trial.candidate.name
                seconds = [one.seconds for one in done if one.candidate is trial.candidate]
                expected = max([times.fits[name], *seconds])
                if self.call.left_s < 2 * expected + rival_s:  # it may have to be trained again
                    continue
                progress.part(f"training {name} on images", expected)
                done.append(self._tried(trial))
            best = _best(done)
            rival = _best([one for one in done if one.candidate is self.kind.cached[0]])
            runs = {}
            for trial in dict.fromkeys((best, rival)):
                name = trial.candidate.name
                progress.part(f"testing {name}", trial.seconds)
                runs[name] = finished_run(self.call, name, self._config(trial, tests=True))
        return self._answer(audit, done, best, runs)

    # -- parts ---------------------------------------------------------------------------------

    def _look(self) -> Findings:
        """Audit the data, and keep its split; returns what was found."""
        data, kind = self.data, self.kind
        data.setup_splits()
        parts = data.layout.parts
        listed = f" ({', '.join(parts)})" if parts else ""
        say(f"{self.call.place}: {kind.layouts[data.layout.name]}{listed}.")
        audit = kind.report(self._task(kind.cached[0]), data).audit()
        assert audit is not None, "the data has masks or boxes"
        Console().print(audit.render())
        audit.check(allow_degenerate=False)
        sizes = {part: len(data.indices(part)) for part in ("train", "val", "test")}
        self.epochs = max(
            math.ceil(kind.steps[0] * _BATCH / sizes["train"]),
            min(20, kind.steps[1] * _BATCH // sizes["train"]),
        )
        file = self._write_split()
        made = "of the folder" if parts else "drawn here"
        say(
            f"{sizes['train']:,} images to train, {sizes['val']:,} to validate, {sizes['test']:,} "
            f"to test ({made}): {file}"
        )
        if not parts:
            say(
                "If the images are frames of a few videos or places, neighbours are now on both "
                "sides: put whole ones into train/ and test/."
            )
        return audit

    def _write_split(self) -> Path:
        """Which images train, validate and test, as a table."""
        rows = [
            {"path": self.data.image_names("test" if part == "test" else "train")[at], "part": part}
            for part in ("train", "val", "test")
            for at in self.data.indices(part).tolist()
        ]
        return write_text(self.call.home / "split.csv", csv_text(rows, ["path", "part"]))

    def _require_same_data(self) -> None:
        """Check that runs of earlier calls were made of the same data.

        Raises:
            ValueError: They were not.
        """
        file, now = self.call.home / "data.sha256", self.data.fingerprint()
        if not file.exists():
            write_text(file, now)
        elif file.read_text(encoding="utf-8") != now:
            raise ValueError(
                f"The files of {self.call.place} have changed since {self.call.home} was made of "
                "them, and results of both would be mixed. Name another folder with --out."
            )

    def _times(self) -> _Times:
        """Time a step of each strategy on this machine; sets the precision of the runs."""
        device = named_device("auto")
        faster = device.type != "cpu" or time_over_float32(torch.bfloat16) < WORTH_IT
        self.precision = self.call.precision(faster)
        in_half = self.precision != "32-true"
        images = {part: len(self.data.indices(part)) for part in ("train", "val")}
        self.data.loader_dataset("train")  # so that they are read as in training
        few = self.data.samples("train", list(range(min(_TIMED, images["train"]))))
        batch = {name: column.to(device) for name, column in few.items()}
        pass_s, fits = 0.0, {}
        for candidate in (*self.kind.cached, *self.kind.on_images):
            task = self._task(candidate)
            task.build()
            task.to(device).train()
            with torch.autocast(device.type, torch.bfloat16, in_half), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # nothing is logged without a trainer
                step_s = seconds_of(partial(_step, task, batch)) / len(batch["image"])
                if candidate in self.kind.cached:
                    pass_s = seconds_of(partial(_pass, task, batch)) / len(batch["image"])
                    step_s = max(step_s - pass_s, 0.0)
            fits[candidate.name] = 2 * RUN_S + self.epochs * images["train"] * step_s
        return _Times(pass_s * sum(images.values()), fits)

    def _cached_s(self, times: _Times) -> float:
        """Seconds of everything that does not train on images."""
        fits = (times.fits[one.candidate.name] for one in _in_turn(self.kind.cached))
        return times.kept + sum(fits) + 2 * times.fits[self.kind.cached[0].name]

    def _total_s(self, times: _Times) -> float:
        """Seconds of everything, at most."""
        cached_s = self._cached_s(times)
        if self.call.minutes is not None:
            return max(cached_s, self.call.budget_s)
        first_s = 2 * times.fits[self.kind.on_images[0].name]
        return cached_s + first_s * (cached_s + first_s <= self.call.budget_s)

    def _say_plan(self, times: _Times) -> None:
        lines = [
            f"one pass of the frozen backbone over all images: {duration(times.kept)}",
            *(
                f"{one.name} ({one.why}), {len(one.settings)} fits: "
                f"{duration(len(one.settings) * times.fits[one.name])}"
                for one in self.kind.cached
            ),
            "train the best and the linear probe again, test",
        ]
        cached_s = self._cached_s(times)
        self.call.say_if_short("the strategies on cached features", cached_s)
        for number, one in enumerate(self.kind.on_images):
            fit_s = times.fits[one.name]
            needed_s = cached_s + 2 * fit_s
            fits, how = needed_s <= self.call.budget_s, "only with --minutes"
            if self.call.minutes is not None:
                how = "as the minutes allow" if fits else "not within the minutes"
            elif number == 0 and fits:
                how = "two fits at most"
            elif number == 0:
                how = f"only with --minutes {math.ceil(needed_s / 60) + 1}"
            lines.append(f"{one.name} ({one.why}): {duration(fit_s)} a fit, {how}")
        say("What will be tried, and about how long it takes here:")
        for number, line in enumerate(lines, start=1):
            say(f"  {number}. {line}")

    def _tried(self, trial: Trial) -> Trial:
        """The trial with its score in validation."""
        began = time.monotonic()
        result = read_results(finished_run(self.call, trial.name, self._config(trial, tests=False)))
        # A run that an earlier call finished takes no time now; the next one will.
        seconds = max(time.monotonic() - began, result.seconds.get("fit", 0.0))
        score = float(result.metrics[f"best_val/{self.kind.metric}"])
        return trial._replace(score=score, seconds=seconds)

    def _model(self, trial: Trial) -> dict[str, Any]:
        kind = self.kind
        return model_config(
            self.call, kind.task.__name__, self.backbone, trial.candidate, trial.setting,
            **kind.model,
        )  # fmt: skip

    def _task(self, candidate: Candidate) -> Any:
        """The task of a strategy, not built yet."""
        config = self._model(Trial(candidate, candidate.settings[0]))
        config["init_args"]["num_classes"] = len(self.data.class_names)
        return build(self.kind.task, config, origin=candidate.name)

    def _config(self, trial: Trial, *, tests: bool) -> dict[str, Any]:
        data = {
            "class_path": f"datamodules.{self.kind.data.__name__}",
            "init_args": {**self.options, "class_names": self.data.class_names},
        }
        return run_config(
            self.call, self._model(trial), data,
            epochs=self.epochs, precision=self.precision, trial=not tests,
        )  # fmt: skip

    # -- the answer ----------------------------------------------------------------------------

    def _answer(
        self, audit: Findings, done: Sequence[Trial], best: Trial, runs: Mapping[str, Path]
    ) -> Answer:
        kind, call, run = self.kind, self.call, runs[best.candidate.name]
        score, table = SCORES[kind.metric], self._table(run)
        value, interval = score.value(table), pooled_interval(table, score)
        claim = (
            f"{best.candidate.name} {kind.claim(self.data.class_names, percent(value))} on "
            f"{len(table):,} test images"
        )
        baseline, words = kind.guess
        guess = f"{words} {percent(read_results(run).baselines[baseline][kind.metric])}"
        lead = self._lead(best, runs)
        others = len({one.candidate.name for one in done}) > 1
        alone = {} if others else {"alone": _ONLY_ONE}
        text = answer(claim, interval, guess, lead, of="images", **alone)
        html = page_of("kora.adaptation", "page_trials.html").render(
            name=call.place.resolve().name,
            sentence=text,
            run=run,
            column=kind.column,
            python=kind.python,
            commands=call.commands(run, kind.predictions),
            tried=[
                {"trial": one, "best": one == best, "adapts": one.candidate in kind.on_images}
                for one in sorted(done, key=lambda one: -one.score)
            ],
            backbone=call.backbone,
            took=duration(call.passed_s),
            pictures=[(inline_png(run / name), caption) for name, caption in kind.pictures],
            notes=[*audit.warnings, *kind.notes(audit)],
        )
        page = write_text(call.home / PAGE, html)
        return kind.result(call.home, run, best.candidate.name, interval, text, page, value)

    def _lead(self, best: Trial, runs: Mapping[str, Path]) -> Lead | None:
        """Lead over the linear probe in the test; None if that is the best."""
        rival = self.kind.cached[0]
        if best.candidate is rival:
            return None
        score = SCORES[self.kind.metric]
        mine, theirs = (self._table(runs[name]) for name in (best.candidate.name, rival.name))
        probe, found = score.value(theirs), pooled_difference([mine], [theirs], score)
        return Lead(probe, score.value(mine) - probe, found.bootstrap, found.p)

    def _table(self, run: Path) -> Any:
        """What the outcomes of a run hold for the score."""
        outcomes = read_outcomes(run)
        assert outcomes is not None, "a run of kora fit leaves its outcomes"
        return SCORES[self.kind.metric].table(outcomes)


def _in_turn(candidates: Sequence[Candidate]) -> list[Trial]:
    """The first setting of each strategy, then the second of each, and so on."""
    rounds = range(max(len(one.settings) for one in candidates))
    return [
        Trial(one, one.settings[at])
        for at in rounds
        for one in candidates
        if at < len(one.settings)
    ]


def _best(trials: Sequence[Trial]) -> Trial:
    return max(trials, key=lambda trial: trial.score)


def _step(task: Any, batch: Mapping[str, Tensor]) -> None:
    task.training_step(batch, 0).backward()


@torch.no_grad()
def _pass(task: Any, batch: Mapping[str, Tensor]) -> None:
    task.backbone(batch["image"])


def _size_for(images: Path, backbone: str, weights: str, *, most: int) -> tuple[int, int]:
    """Height and width of the backbone: the usual proportions of the images, in whole patches."""
    side = usual_size(backbone, weights, most=most)
    patch = None if side is None else patch_of(backbone)
    if side is None or patch is None:
        return most, most  # the backbone says what is wrong with its name
    ratios = []
    for path in list(visible_files(images))[:_ASPECT_OF]:
        try:
            height, width = upright_size(path)
        except UnreadableImageError:
            continue
        ratios.append(height / width)
    ratio = float(np.median(ratios)) if ratios else 1.0
    high, wide = side * math.sqrt(ratio), side / math.sqrt(ratio)
    return max(1, round(high / patch)) * patch, max(1, round(wide / patch)) * patch
