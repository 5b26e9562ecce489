"""The steps of `kora adapt`: look, split, cache features, search, train the best, test once."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.image_table import ImageTable
from datamodules.locks import acquired, lock_at
from datamodules.recipe import ImageRecipe
from kora.adaptation import BACKBONE, results_folder
from kora.adaptation.audit import Audit, look_at
from kora.adaptation.call import Call, StoppedError
from kora.adaptation.candidates import CACHED, THROUGH, Candidate
from kora.adaptation.features import FeatureStore, SharedPass, fill
from kora.adaptation.layout import Layout, find_pictures, has_boxes, has_masks
from kora.adaptation.plan import REFIT, RUN_S, THROUGH_EPOCHS, Plan, plan_for
from kora.adaptation.progress import Progress
from kora.adaptation.report import Report, write_report
from kora.adaptation.result import Adapted, Answer
from kora.adaptation.runs import Setup, finished_run
from kora.adaptation.search import BATCH_SIZE, Search, Searched, epochs_for, searched, simplest
from kora.adaptation.split import Split, split_for
from kora.adaptation.words import percent
from kora.backbone.vit import Backbone, usual_size
from kora.console.say import say
from kora.feature_cache.cache import FeatureCache
from kora.runs.durable import expand
from kora.runs.processes import Stop
from kora.runs.results import read_results
from kora.tasks.load import load_adapter, named_device
from kora.training.batched_fit import Setting, fit_together, rows_of

__all__ = ["Adapted", "StoppedError", "adapt"]

_SIDE = 224  # pixels; on a CPU, a larger size of the weights costs more than it gains
#: Learning rates of head and adapter, in the order in which they are tried.
_THROUGH_SETTINGS = (Setting(2e-4, 1e-3), Setting(2e-4, 3e-4), Setting(1e-3, 3e-3))
_MEMORY = 0.8  # share of all memory that may be used
_MARGIN = 2.0  # standard errors; a strategy further behind gets no other settings
_SHARES = (0.25, 0.5, 1.0)  # of the training pictures, for the learning curve


class Through(NamedTuple):
    """Fits of one setting through the backbone, one a fold.

    Args:
        candidate: The strategy.
        setting: Its learning rates and weight decay.
        right: (n,) 1 for each picture that the fit without it predicted right, 0 for a wrong one,
            -1 where it has not validated.
        folds: The folds that validated.
        seconds: How long the last fit took.
    """

    candidate: Candidate
    setting: Setting
    right: NDArray[np.int8]
    folds: tuple[int, ...]
    seconds: float

    @property
    def accuracy(self) -> float:
        """Over the folds that validated."""
        return float(self.right[self.right >= 0].mean())

    @property
    def pictures(self) -> int:
        """How many pictures validated."""
        return int((self.right >= 0).sum())


class _Choice(NamedTuple):
    """A strategy with its settings, to be trained."""

    candidate: Candidate
    setting: Setting
    through: bool


def adapt(
    folder: str | Path,
    *,
    backbone: str = BACKBONE,
    weights: str | Path | None = None,
    minutes: float | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    dry_run: bool = False,
    stop: Stop | None = None,
) -> Answer | None:
    """Find the best strategy and settings for a folder of pictures, and train the model.

    Results of earlier calls are used again: the split, cached features, fits and runs.

    Args:
        folder: `CLASS/*`, `train/CLASS/*` with `test` and maybe `val`, or a CSV of path and label;
            for a class of each pixel, `images` and `masks`, or `train` and `test` with these; for
            boxes, COCO json, Pascal VOC or YOLO, as `datamodules.DetectionFolder` reads them.
        backbone: A vision transformer of timm.
        weights: A `.safetensors` file; None fetches those of timm.
        minutes: Time for everything; None: what strategies on cached features need, and one that
            trains through the backbone, if 20 minutes are enough for both.
        out: Folder for everything that is made; None: `runs/adapt_<name of the folder>`.
        seed: Of the split and of every fit.
        dry_run: Only look, split, and print what would be tried and how long it would take.
        stop: Checked between the steps; None: only an exception stops it.

    Raises:
        FileNotFoundError: There is no such folder or file of weights.
        ValueError: There is nothing to tell apart, or an option is out of range.
        RuntimeError: Weights cannot be fetched, or a run failed.
        StoppedError: A signal came.
    """
    if minutes is not None and not (isinstance(minutes, Real) and minutes > 0):
        raise ValueError(f"--minutes {minutes!r}: expected a number above 0.")
    if not (isinstance(seed, Integral) and 0 <= seed < 2**32):
        raise ValueError(f"--seed {seed!r}: expected a whole number from 0 to 4294967295.")
    place = expand(folder)
    masks, boxes = has_masks(place), has_boxes(place)
    if masks and boxes:
        say(f"{place} holds masks and boxes: masks are taken. For boxes, move the masks away.")
    layout = None if masks or boxes else find_pictures(place)
    home = results_folder(place) if out is None else expand(out)
    if home.resolve().is_relative_to(place.resolve()):
        raise ValueError(
            f"The results would lie in {home}, among the pictures, where a next call would take "
            "them for some. Name a folder elsewhere with --out."
        )
    home.mkdir(parents=True, exist_ok=True)
    lock = lock_at(home / ".lock")
    if not acquired(lock, timeout_s=0):
        raise RuntimeError(f"{home}: another kora adapt is at work there. Wait for it.")
    try:
        source = _source(weights)
        call = Call(place, home, backbone, source, minutes, seed, Stop() if stop is None else stop)
        if layout is not None:
            return _Whole(layout, call).run(dry_run=dry_run)
        from kora.adaptation.boxes import BOXES
        from kora.adaptation.masks import MASKS
        from kora.adaptation.trials import Trials

        return Trials(MASKS if masks else BOXES, call).run(dry_run=dry_run)
    finally:
        lock.release()


class _Whole:
    """One call of `adapt`."""

    def __init__(self, layout: Layout, call: Call) -> None:
        self.layout, self.call = layout, call
        self.home, self.seed = call.home, call.seed
        size = usual_size(call.backbone, call.weights, most=_SIDE)
        self.arguments = {"name": call.backbone, "weights": call.weights, "image_size": size}
        # Or raises what is missing.
        self.backbone = Backbone(call.backbone, weights=call.weights, image_size=size)
        self.backbone.to(named_device("auto"))
        self.recipe = ImageRecipe("crop", self.backbone.size)
        self.classes = layout.labels
        self.split: Split
        self.shared: SharedPass
        self.store: FeatureStore
        self._precision = "32-true"  # of fits through the backbone; measured later
        self.content: dict[str, str] = {}  # SHA-256 of each picture, by path

    def run(self, *, dry_run: bool) -> Adapted | None:
        """Run all steps."""
        audit = self._look()
        self.shared = SharedPass(self.backbone, CACHED, len(self.classes), seed=self.seed)
        _require_memory(len(self.split.rows), self.shared.width)
        self.store = FeatureStore(self.home / "features", self.shared.identity(self.recipe))
        missing = len(self.store.missing([self.content[row.path] for row in self.split.rows]))
        search = self._search_of()
        plan = plan_for(self.shared, self.split, missing, self.call, search)
        self._precision = plan.precision
        say("What will be tried, and about how long it takes here:")
        for number, line in enumerate(plan.lines(), start=1):
            say(f"  {number}. {line}")
        if dry_run:
            return None
        self.call.keep_precision(plan.precision)
        with Progress(plan.total_s) as progress:
            progress.part("computing features", plan.features_s, missing)
            paths = {self.content[r.path]: self.layout.root / r.path for r in self.split.rows}
            step = self._watched(progress.step)
            fill(self.store, self.shared, paths, self.recipe, after=step)
            found = self._searched(search, plan, progress)
            best = simplest(search, found)
            tried = self._through(plan, search, found, best, progress)
            choice = _chosen(search, best, tried)
            runs = self._train_again(plan, choice, found[0], search, progress)
        chosen = choice.candidate.name
        report = Report(
            layout=self.layout, audit=audit, split=self.split, classes=self.classes, search=search,
            found=found, best=best, through=tried, chosen=chosen, setting=choice.setting, runs=runs,
            probe=found[0].label, curve=self._curve(search, best), backbone=self.backbone.name,
            seconds=self.call.passed_s, home=self.home,
            commands=self.call.commands(runs[chosen]),
        )  # fmt: skip
        page = write_report(report)
        accuracy, interval = report.accuracy
        return Adapted(
            self.home, runs[chosen], chosen, interval, report.sentence, page, accuracy=accuracy
        )

    @cached_property
    def _kept(self) -> Tensor:
        """Cached features of the pictures that train or validate."""
        rows, _ = self.split.training()
        return self.store.rows([self.content[row.path] for row in rows])

    # -- parts ---------------------------------------------------------------------------------

    def _look(self) -> Audit:
        """Open the pictures, and split them."""
        say(f"{self.layout.place}: {self.layout.kind}.")
        pictures = len(self.layout.rows)
        with Progress(pictures) as progress:
            progress.part("looking at the pictures", pictures, pictures)
            memory = self.home / "pictures.json"
            audit = look_at(self.layout, memory, after_each=self._watched(progress.step))
        self.split = split = split_for(audit, self.home, seed=self.seed)
        self.content = {row.path: s.sha256 for row, s in zip(audit.rows, audit.seen, strict=True)}
        for sentence in [*self.layout.notes, *audit.sentences(), *split.notes]:
            say(sentence)
        counts = {part: len(split.of(part)) for part in ("train", "val", "test")}
        validates = f", {counts['val']:,} to validate" if counts["val"] else " in five folds"
        say(
            f"{counts['train']:,} pictures to train{validates}, {counts['test']:,} to test "
            f"({'drawn here' if split.made_test else 'of the folder'}): {split.file}"
        )
        return audit

    def _search_of(self) -> Search:
        """What the searches of all strategies on cached features have in common."""
        rows, folds = self.split.training()
        number = {name: label for label, name in enumerate(self.classes)}
        content = [self.content[row.path] for row in rows]
        identity = json.dumps([self.shared.identity(self.recipe), content], sort_keys=True)
        return Search(
            labels=np.array([number[row.label] for row in rows]),
            folds=folds,
            memory=self.home / "search",
            identity=hashlib.sha256(identity.encode()).hexdigest(),
            seed=self.seed,
        )

    def _searched(self, search: Search, plan: Plan, progress: Progress) -> list[Searched]:
        """Search the strategies on cached features, one after another."""
        search = replace(search, after=self._watched(progress.step))
        found: list[Searched] = []
        for member in plan.members:
            progress.part(f"searching {member.task.label}", plan.search_s(member), plan.fits)
            finished = [one for one in found if one.finished]
            leader = max(finished, key=search.accuracy, default=None)
            found.append(
                searched(search, member, self.shared.inputs_of(member, self._kept), leader)
            )
        return found

    def _through(
        self,
        plan: Plan,
        search: Search,
        found: Sequence[Searched],
        best: Searched,
        progress: Progress,
    ) -> list[Through]:
        """Fit through the backbone while the minutes last; each fit must leave time to repeat it on
        all pictures.

        Every setting is fitted once. Where that does not tell the best of them from `best`, it
        validates on more folds.
        """
        tried: list[Through] = []
        fold, *others = search.all_folds
        pictures = int((search.folds == fold).sum())
        top = max(search.accuracy(one, [fold]) for one in found)

        def fits(expected: float) -> bool:
            again = max([expected, *(one.seconds for one in tried)]) * REFIT
            return self.call.left_s - 2 * RUN_S >= expected + again

        for setting, candidate in [*product(_THROUGH_SETTINGS, THROUGH)][: self.call.most_fits]:
            mine = [one for one in tried if one.candidate == candidate]
            expected = mine[-1].seconds if mine else plan.through_s[candidate.name]
            if fits(expected) and not (mine and _behind(mine, top, pictures)):
                if not tried:
                    progress.say(
                        f"{best.label} is best on cached features: "
                        f"{percent(search.accuracy(best))} in validation."
                    )
                progress.part(f"training {candidate.name} through the backbone", expected)
                none = np.full(len(search.labels), -1, dtype=np.int8)
                begun = Through(candidate, setting, none, (), 0.0)
                tried.append(self._validated(begun, search, fold))
                top = max(top, tried[-1].accuracy)
        for fold in others:
            leader = _leader(tried)
            if leader is None or not fits(leader.seconds) or _told(search, best, leader):
                break
            progress.part(f"{leader.candidate.name} on another fold", leader.seconds)
            tried[tried.index(leader)] = self._validated(leader, search, fold)
        return tried

    def _validated(self, one: Through, search: Search, fold: int) -> Through:
        """The same with a fit that validates on `fold`."""
        begun = time.monotonic()
        run = self._run(_Choice(one.candidate, one.setting, True), THROUGH_EPOCHS, fold)
        rows, folds = self.split.training()
        among = np.flatnonzero(folds == fold)
        said = load_adapter(run).predict([self.layout.root / rows[at].path for at in among])
        assert isinstance(said, list), "of a list"
        right = one.right.copy()
        right[among] = [
            prediction.name == rows[at].label for prediction, at in zip(said, among, strict=True)
        ]
        # A run that an earlier call finished takes no time now; the next one will.
        seconds = max(time.monotonic() - begun, read_results(run).seconds.get("fit", 0.0))
        return one._replace(right=right, folds=(*one.folds, fold), seconds=seconds)

    def _train_again(
        self, plan: Plan, choice: _Choice, probe: Searched, search: Search, progress: Progress
    ) -> dict[str, Path]:
        """Train the choice and the linear probe on all pictures, and test; returns runs by name."""
        rival = _Choice(probe.member.candidate, probe.best.setting, False)
        runs: dict[str, Path] = {}
        for one in dict.fromkeys((choice, rival)):
            seconds = plan.through_s[one.candidate.name] * REFIT if one.through else RUN_S
            progress.part(f"training {one.candidate.name} on all pictures", seconds)
            epochs = THROUGH_EPOCHS if one.through else search.epochs
            runs[one.candidate.name] = self._run(one, epochs, None)
        return runs

    def _run(self, choice: _Choice, epochs: int, trial_of: int | None) -> Path:
        """Run `kora fit`; a trial validates on a fold, and is not tested.

        Raises:
            RuntimeError: It failed.
            StoppedError: A signal came.
        """
        setup = Setup(
            self.call, self.split.file.absolute(), self.layout.root.absolute(), self.arguments,
            self.backbone.size,
        )  # fmt: skip
        own_val = bool(self.split.of("val"))
        config = setup.config(
            choice.candidate, choice.setting, epochs=epochs, through=choice.through,
            trial=trial_of is not None, val_fold=None if own_val else trial_of,
            precision=self._precision if choice.through else "32-true",
        )  # fmt: skip
        if not choice.through:
            self._keep_for(choice.candidate, config)
        name = choice.candidate.name
        if trial_of is not None:
            name = f"trial_{name}_{choice.setting.lr:g}_fold{trial_of}"
        return finished_run(self.call, name, config)

    def _keep_for(self, candidate: Candidate, config: dict[str, Any]) -> None:
        """Put the features that a strategy reads where its run finds them."""
        (member,) = (one for one in self.shared.members if one.candidate == candidate)
        data = ImageTable(**config["data"]["init_args"])
        data.setup_splits()
        trainer: Any = _Precision(data, config["trainer"]["precision"])
        cache = FeatureCache(True, folder=str(self.home / "features"))
        splits: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
        with self.shared.alone(member):
            for split in splits:
                rows = data.rows["test" if split == "test" else "train"]
                keys = [self.content[rows[at].path] for at in data.indices(split).tolist()]
                if keys:
                    inputs = self.shared.inputs_of(member, self.store.rows(keys))
                    cache.put(member.task, trainer, split, inputs)

    def _curve(self, search: Search, best: Searched) -> list[tuple[int, float]]:
        """The learning curve: numbers of training pictures, and the accuracy on the first fold."""
        validates = search.folds == search.all_folds[0]
        learns, rest = np.flatnonzero(~validates), np.flatnonzero(validates)
        inputs = self.shared.inputs_of(best.member, self._kept)
        order = np.random.default_rng(self.seed).permutation(learns)
        labels = torch.from_numpy(search.labels)
        found = []
        for share in _SHARES:
            some = torch.from_numpy(np.sort(order[: max(2, round(share * len(order)))]))
            trained = fit_together(
                best.member.task, rows_of(inputs, some), labels[some], [best.best.setting],
                epochs=epochs_for(len(some)), batch_size=BATCH_SIZE, seed=self.seed,
            )  # fmt: skip
            (said,) = trained.logits(best.member.task, rows_of(inputs, torch.from_numpy(rest)))
            right = (said.argmax(dim=-1) == labels[rest]).float().mean().item()
            found.append((len(some), right))
        return found

    def _watched(self, step: Callable[..., object]) -> Callable[..., object]:
        """A step of the progress bar that raises `StoppedError` after a signal."""

        def moved(*args: float) -> None:
            self.call.require_no_signal()
            step(*args)

        return moved


def _source(weights: str | Path | None) -> str:
    """The option `weights` of a backbone."""
    return "pretrained" if weights is None else str(expand(weights).absolute())


class _Precision(NamedTuple):
    """The attributes of a trainer that a feature cache reads."""

    datamodule: ImageTable
    precision: str


def _require_memory(pictures: int, width: int) -> None:
    """Check that memory has room for the features twice: a strategy reads them from a copy.

    Raises:
        ValueError: It would not fit.
    """
    needed = 2 * 4 * pictures * width
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > _MEMORY * there:
        raise ValueError(
            f"The features of {pictures:,} pictures take {needed / 2**30:.1f} GiB of memory, and "
            f"there are {there / 2**30:.1f}. Give kora adapt a part of them, or use kora fit "
            "--config image_folder, which reads them from the disk."
        )


def _leader(tried: Sequence[Through]) -> Through | None:
    """The best of the fits through the backbone that validated on most folds; None if none did."""
    return max(tried, key=lambda one: (len(one.folds), one.accuracy), default=None)


def _lead(search: Search, best: Searched, one: Through) -> float:
    """Lead of a fit over `best` in standard errors, picture by picture."""
    among = one.right >= 0
    gain = one.right[among] - best.best.right(search.labels, among).astype(float)
    return float(gain.mean() / max(gain.std() / math.sqrt(len(gain)), 1e-9))


def _told(search: Search, best: Searched, one: Through) -> bool:
    """Whether a fit is further ahead of `best`, or behind it, than chance allows."""
    return abs(_lead(search, best, one)) > _MARGIN


def _chosen(search: Search, best: Searched, tried: Sequence[Through]) -> _Choice:
    """`best`, or the fit through the backbone that is ahead of it on the pictures it validated.

    No margin is asked of it: unlike `best`, it has one setting, so its score is not the luckiest
    of many.
    """
    leader = _leader(tried)
    if leader is not None and _lead(search, best, leader) > 0:
        return _Choice(leader.candidate, leader.setting, True)
    return _Choice(best.member.candidate, best.best.setting, False)


def _behind(mine: Sequence[Through], best: float, pictures: int) -> bool:
    """Whether the best fit of a strategy is further behind than chance allows."""
    own = max(one.accuracy for one in mine)
    return own + _MARGIN * _error(own, best, pictures) < best


def _error(one: float, other: float, pictures: int) -> float:
    """Standard error of the difference of two accuracies, as if measured on different pictures."""
    return math.sqrt((one * (1 - one) + other * (1 - other)) / pictures)
