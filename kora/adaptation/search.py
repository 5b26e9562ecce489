"""The search of strategies on cached features, by cross-validation, many fits at once.

Shapes: S settings, n training pictures, v of them in a fold, K classes
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from kora.adaptation.features import Member
from kora.runs.durable import write_atomically
from kora.training.batched_fit import Setting, fit_together, fits_at_once, rows_of

__all__ = [
    "BATCH_SIZE",
    "Search",
    "Searched",
    "Tried",
    "epochs_for",
    "fits_of",
    "is_kept",
    "searched",
    "simplest",
]

BATCH_SIZE = 128
_STEPS, _FEWEST, _MOST = 200, 10, 100  # optimiser steps to aim at; least and most epochs
_SEEN = 250  # pictures that the first rounds validate on, if there are enough
_FINALISTS = 4  # settings that validate on every fold
_ROUNDS = 4  # at most; more than two only if the best is at the edge of what was tried
_AT_ONCE = 16  # fits at most, as what is kept after a stop are whole groups
_DECAYS = (0.01, 1.0)
_HOPELESS = 2.0  # standard errors behind the leader


@dataclass
class Tried:
    """A setting of a strategy, and its results.

    Args:
        setting: Learning rates and weight decay.
        predictions: (n,) of each picture by the fit that did not train on it; -1 if there is none.
        losses: Summed over the pictures of each fold.
    """

    setting: Setting
    predictions: NDArray[np.int64]
    losses: dict[int, float] = field(default_factory=dict)

    def right(self, labels: NDArray[np.int64], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of the pictures in `among` were predicted right."""
        return np.asarray(self.predictions[among] == labels[among])


@dataclass
class Searched:
    """The result of the search of a strategy.

    Args:
        member: The strategy.
        best: The best of its settings.
        tried: All of them.
        finished: Whether the search was not given up.
        at_edge: Learning rates of the best that are at an end of what was tried, after all rounds.
    """

    member: Member
    best: Tried
    tried: list[Tried]
    finished: bool
    at_edge: list[str]

    @property
    def label(self) -> str:
        """Label of the strategy."""
        return self.member.task.label


@dataclass(frozen=True)
class Search:
    """What the searches of all strategies have in common.

    Args:
        labels: (n,) of the training pictures.
        folds: (n,) the fold in which each validates. If the folder has a validation part, 0 for
            its pictures, and -1 (never) for all others.
        memory: Folder that keeps the results of fits, so that a stopped search can resume.
        identity: What else the fits depend on.
        seed: Of the order of the pictures.
        after: Called with the share of a fit that was just done; there are `fits_of` fits.
    """

    labels: NDArray[np.int64]
    folds: NDArray[np.int64]
    memory: Path
    identity: str
    seed: int
    after: Callable[[float], object] = lambda share: None

    @property
    def all_folds(self) -> list[int]:
        """The folds that validate."""
        return sorted(set(self.folds[self.folds >= 0].tolist()))

    @property
    def first_folds(self) -> list[int]:
        """The folds of the first rounds: as many as it takes for enough pictures."""
        return first_folds(self.folds)

    @property
    def epochs(self) -> int:
        """Epochs of every fit."""
        return epochs_for(len(self.labels))

    def accuracy(self, one: Searched, folds: Sequence[int] | None = None) -> float:
        """Accuracy of a strategy's best setting over these folds; None: over all that validated."""
        among = one.best.predictions >= 0
        if folds is not None:
            among &= np.isin(self.folds, folds)
        return float(one.best.right(self.labels, among).mean())


def simplest(search: Search, found: Sequence[Searched]) -> Searched:
    """The first strategy at most one standard error behind the best, picture by picture.

    The best of several is partly lucky. Source: Breiman et al. 1984, Classification and Regression
    Trees, section 3.4.3, the 1 SE rule.
    """
    finished = [one for one in found if one.finished]
    best = max(finished, key=search.accuracy)
    among = best.best.predictions >= 0
    ahead = best.best.right(search.labels, among).astype(float)
    for one in finished:
        gain = ahead - one.best.right(search.labels, among)
        if gain.mean() <= gain.std() / math.sqrt(len(gain)):
            return one
    return best


def first_folds(folds: NDArray[np.int64]) -> list[int]:
    """As few folds as it takes to validate on `_SEEN` pictures."""
    numbers, counts = np.unique(folds[folds >= 0], return_counts=True)
    enough = int(np.searchsorted(np.cumsum(counts), _SEEN)) + 1
    return [int(number) for number in numbers[:enough]]


def epochs_for(pictures: int) -> int:
    """Epochs of a fit: the fewer pictures, the more epochs."""
    steps = math.ceil(pictures / BATCH_SIZE)
    return min(_MOST, max(_FEWEST, round(_STEPS / steps)))


def is_kept(search: Search, member: Member) -> bool:
    """Whether an earlier call kept the first round of a strategy's search: most of it, or all."""
    first = [Tried(one, np.empty(0, dtype=np.int64)) for one in _first(_adapts(member))]
    return all(
        _file(search, member, some, fold).exists()
        for fold in search.first_folds
        for some in _groups(member, first)
    )


def fits_of(folds: NDArray[np.int64]) -> int:
    """Number of fits in the search of a strategy, if it ends after two rounds."""
    first, every = len(first_folds(folds)), len(set(folds[folds >= 0].tolist()))
    return first * (16 + 8) + _FINALISTS * (every - first)


def searched(
    search: Search, member: Member, inputs: Mapping[str, Tensor], leader: Searched | None
) -> Searched:
    """Search one strategy; given up if it cannot reach the leader any more.

    Args:
        search: What it is searched on.
        member: The strategy.
        inputs: What it reads of the n training pictures.
        leader: The best strategy so far; None: this one is searched to its end.
    """
    adapts = _adapts(member)
    tried: list[Tried] = []
    first, every = search.first_folds, search.all_folds
    wanted: Sequence[Setting] = _first(adapts)
    for number in range(_ROUNDS):
        known = {one.setting for one in tried}
        new = [
            Tried(setting, np.full(len(search.labels), -1))
            for setting in dict.fromkeys(wanted) if setting not in known
        ]  # fmt: skip
        for fold in first:
            _try(search, member, inputs, new, fold)
        tried += new
        best = _best(search, tried, first)
        if number == 0:
            if leader is not None and _hopeless(search, best, leader.best, first):
                return Searched(member, best, tried, False, [])
            wanted = _around(best.setting, adapts, step=0.5)
            continue
        finalists = sorted(tried, key=lambda one: _rank(search, one, first))[:_FINALISTS]
        for fold in every:
            _try(search, member, inputs, [one for one in finalists if fold not in one.losses], fold)
        best = _best(search, [one for one in tried if len(one.losses) == len(every)], every)
        if not _at_edge(best.setting, tried, adapts):
            break
        wanted = _around(best.setting, adapts, step=1.0)
    return Searched(member, best, tried, True, _at_edge(best.setting, tried, adapts))


# -- settings --------------------------------------------------------------------------------------

_PROBE_STEP, _ADAPTER_STEP = 3 / 7, 1.0  # decades between learning rates of the first round


def _adapts(member: Member) -> bool:
    """Whether a strategy has a learning rate of its own, beside that of the head."""
    return any(True for _ in member.task.adapter.trainable())


def _first(adapts: bool) -> list[Setting]:
    """Sixteen settings over three decades: of both learning rates, or with two weight decays."""
    if adapts:
        rates = [10.0**k for k in (-5, -4, -3, -2)]
        return [Setting(head, own) for head, own in itertools.product(rates, rates)]
    rates = [10 ** (-5 + k * _PROBE_STEP) for k in range(8)]
    return [Setting(rate, rate, decay) for rate, decay in itertools.product(rates, _DECAYS)]


def _around(best: Setting, adapts: bool, step: float) -> list[Setting]:
    """The eight neighbours of a setting; half a step is between those that were tried."""
    moves = [move for move in itertools.product((-step, 0.0, step), repeat=2) if move != (0.0, 0.0)]
    if adapts:
        return [Setting(best.head_lr * 10**a, best.lr * 10**b, best.weight_decay) for a, b in moves]
    found = [(best.head_lr * 10 ** (a * _PROBE_STEP), best.weight_decay * 10**b) for a, b in moves]
    return [Setting(rate, rate, decay) for rate, decay in found]


def _at_edge(best: Setting, tried: Sequence[Tried], adapts: bool) -> list[str]:
    """Which learning rates of a setting are the smallest or largest tried."""
    found = []
    for name in ("head_lr", "lr") if adapts else ("head_lr",):
        values = [getattr(one.setting, name) for one in tried]
        if getattr(best, name) in (min(values), max(values)):
            found.append(name)
    return found


# -- fits ------------------------------------------------------------------------------------------


def _try(
    search: Search, member: Member, inputs: Mapping[str, Tensor], tried: Sequence[Tried], fold: int
) -> None:
    """Fit these settings without a fold, and predict it; stored results are used again."""
    validates = search.folds == fold
    learns = torch.from_numpy(np.flatnonzero(~validates))
    rest = torch.from_numpy(np.flatnonzero(validates))
    labels = torch.from_numpy(search.labels)
    mine, others = rows_of(inputs, learns), rows_of(inputs, rest)
    for some in _groups(member, tried):
        file = _file(search, member, some, fold)
        kept = _recalled(file, len(some), len(rest))
        if kept is None:
            settings = [one.setting for one in some]
            kept = _fitted(search, member, mine, others, labels[learns], labels[rest], settings)
            _keep(file, kept)
        else:
            search.after(len(some))
        for one, predictions, loss in zip(
            some, kept["predictions"], kept["losses"].tolist(), strict=True
        ):
            one.predictions[validates] = predictions.numpy()
            one.losses[fold] = loss


def _fitted(
    search: Search, member: Member, learns: Mapping[str, Tensor], rest: Mapping[str, Tensor],
    labels_n: Tensor, labels_v: Tensor, settings: Sequence[Setting],
) -> dict[str, Tensor]:  # fmt: skip
    """Fit with every setting; predictions (S, v) and losses (S,) of the rest."""
    trained = fit_together(
        member.task, learns, labels_n, settings,
        epochs=search.epochs, batch_size=BATCH_SIZE, seed=search.seed,
        after_step=lambda done, steps: search.after(len(settings) / steps),
    )  # fmt: skip
    logits_SvK = trained.logits(member.task, rest)
    predictions = logits_SvK.argmax(dim=-1).to(torch.int32)
    return {"predictions": predictions, "losses": _losses(logits_SvK, labels_v)}


def _losses(logits_SvK: Tensor, labels_v: Tensor) -> Tensor:
    """Summed cross-entropy of each setting; infinite if a fit ended in NaN."""
    found = [F.cross_entropy(logits, labels_v, reduction="sum") for logits in logits_SvK]
    return torch.nan_to_num(torch.stack(found).double(), nan=math.inf)


def _groups(member: Member, tried: Sequence[Tried]) -> Iterator[Sequence[Tried]]:
    """The settings that are fitted at once."""
    at_once = min(_AT_ONCE, fits_at_once(member.task))
    for start in range(0, len(tried), at_once):
        yield tried[start : start + at_once]


def _file(search: Search, member: Member, some: Sequence[Tried], fold: int) -> Path:
    """Where the results of these fits are kept."""
    key = [
        search.identity, member.candidate.name, [tuple(one.setting) for one in some], fold,
        search.epochs, search.seed, BATCH_SIZE,
        hashlib.sha256(np.stack([search.labels, search.folds]).tobytes()).hexdigest(),
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return search.memory / f"{digest}.safetensors"


def _keep(file: Path, kept: dict[str, Tensor]) -> None:
    content = save(kept)
    write_atomically(file, lambda target: target.write_bytes(content))


def _recalled(file: Path, settings: int, pictures: int) -> dict[str, Tensor] | None:
    try:
        kept = load_file(file)
    except (OSError, SafetensorError):
        return None
    fits = {"predictions": (settings, pictures), "losses": (settings,)}
    return kept if {k: tuple(v.shape) for k, v in kept.items()} == fits else None


# -- ranking ---------------------------------------------------------------------------------------


def _rank(search: Search, one: Tried, folds: Sequence[int]) -> tuple[float, float]:
    """Smaller is better: by the pictures predicted right, and among equals by the loss."""
    right = one.right(search.labels, np.isin(search.folds, folds)).mean()
    return -float(right), sum(one.losses[fold] for fold in folds)


def _best(search: Search, tried: Sequence[Tried], folds: Sequence[int]) -> Tried:
    return min(tried, key=lambda one: _rank(search, one, folds))


def _hopeless(search: Search, one: Tried, leader: Tried, folds: Sequence[int]) -> bool:
    """Whether a setting is behind by more than chance allows, picture by picture."""
    among = np.isin(search.folds, folds)
    gain = one.right(search.labels, among).astype(float) - leader.right(search.labels, among)
    error = gain.std() / math.sqrt(len(gain))
    return bool(gain.mean() + _HOPELESS * error < 0)
