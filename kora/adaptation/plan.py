"""What will be tried, in which order, and about how long it takes on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from kora.adaptation.call import Call
from kora.adaptation.candidates import THROUGH
from kora.adaptation.features import Member, SharedPass
from kora.adaptation.runs import THROUGH_BATCH_SIZE
from kora.adaptation.search import BATCH_SIZE, Search, epochs_for, fits_of, is_kept
from kora.adaptation.split import Split
from kora.console.formats import duration
from kora.training.batched_fit import Setting, fit_together

__all__ = ["REFIT", "RUN_S", "THROUGH_EPOCHS", "WORTH_IT", "Plan", "plan_for", "seconds_of"]

REFIT = 1 / 0.8  # time of a fit on all five folds over one that leaves out a fold
RUN_S = 6.0  # of a run on cached features, most of it to start
THROUGH_EPOCHS = 10
_THROUGH_PASSES = 3  # forward passes that a training step through the backbone costs, with reading
_PIXELS = 160_000  # of a batch that is timed, which has two pictures at least
_FITS, _STEPS = 4, 3  # that are timed
_TIMES = 3  # the shortest counts: another program may have used the processor
_FEWEST = 2  # strategies tried whatever the minutes: the linear probe and one other
WORTH_IT = 0.8  # time of a pass in bfloat16 over that in float32


@dataclass
class Plan:
    """The steps, and the seconds that each is expected to take.

    Args:
        features_s: Seconds of the pass of the frozen backbone.
        fits: Number of fits in the search of each strategy on cached features.
        fit_s: Seconds of one of them, by the name of the strategy; 0 if an earlier call kept them.
        members: Strategies on cached features, in order.
        through_s: Seconds of one fit through the backbone, by the name of the strategy.
        folds: Number of folds.
        call: Has the minutes.
        precision: Of fits through the backbone; bfloat16 if that is faster.
        left_out: Strategies on cached features that do not fit into the minutes.
    """

    features_s: float
    fits: int
    fit_s: dict[str, float]
    members: list[Member]
    through_s: dict[str, float]
    folds: int
    call: Call
    precision: str
    left_out: list[Member] = field(default_factory=list)

    @property
    def cached_s(self) -> float:
        """Seconds of everything that does not train through the backbone."""
        searches = sum(self.search_s(member) for member in self.members)
        return self.features_s + searches + 2 * RUN_S

    @property
    def total_s(self) -> float:
        """Seconds of everything, at most."""
        if self.call.minutes is not None:
            return max(self.cached_s, self.call.budget_s)
        name = THROUGH[0].name
        through_s = (self.folds - 1) * self.through_s[name] + self.first_s(name)
        left_s = self.call.budget_s - self.cached_s
        return self.cached_s + min(through_s, left_s) * (self.first_s(name) <= left_s)

    def first_s(self, name: str) -> float:
        """Seconds of a fit through the backbone, and of another on all pictures."""
        return self.through_s[name] * (1 + REFIT)

    def search_s(self, member: Member) -> float:
        """Seconds of the search of a strategy."""
        return self.fits * self.fit_s[member.candidate.name]

    def fit_into_minutes(self) -> None:
        """Leave out the last strategies on cached features until the rest fits."""
        if self.call.minutes is None:
            return
        while self.cached_s > self.call.budget_s and len(self.members) > _FEWEST:
            self.left_out.append(self.members.pop())
        self.call.say_if_short(f"the first {_FEWEST} strategies", self.cached_s)

    def lines(self) -> list[str]:
        """The steps in words, in order."""
        kept = "one pass of the frozen backbone over pictures without features"
        found = [f"{kept}: {duration(self.features_s) if self.features_s else 'nothing'}"]
        found += [
            f"{member.task.label} ({member.candidate.why}), {self.fits} fits: "
            f"{duration(seconds) if seconds else 'kept'}"
            for member in self.members
            for seconds in [self.search_s(member)]
        ]
        found.append(f"train the best and the linear probe again, test: {duration(2 * RUN_S)}")
        found += [f"{m.task.label}: not within the minutes" for m in self.left_out]
        left_s = self.call.budget_s - self.cached_s
        for number, candidate in enumerate(THROUGH):
            seconds, first_s = self.through_s[candidate.name], self.first_s(candidate.name)
            fits = first_s <= left_s
            if self.call.minutes is not None:
                how = "as the minutes allow" if fits else "not within the minutes"
            elif number > 0:
                how = "only with --minutes"
            elif fits:
                usual = f"{self.call.budget_s / 60:g} minutes in all"
                how = f"{self.folds + 1} fits at most, as {usual} allow"
            else:
                how = f"only with --minutes {math.ceil((self.cached_s + first_s) / 60) + 1}"
            left_s -= seconds * fits
            found.append(f"{candidate.name} ({candidate.why}): {duration(seconds)} a fit, {how}")
        return found


def plan_for(shared: SharedPass, split: Split, missing: int, call: Call, search: Search) -> Plan:
    """Time a batch of each step on this machine; `missing` pictures have no features yet."""
    backbone = shared.backbone
    device = backbone.mean.device
    count = min(THROUGH_BATCH_SIZE, max(2, _PIXELS // math.prod(backbone.size)))
    images = torch.zeros(count, 3, *backbone.size, dtype=torch.uint8, device=device)
    shared.read(images[:2])
    each_s = half_s = seconds_of(lambda: shared.read(images)) / count
    if device.type == "cpu":
        with torch.autocast("cpu", torch.bfloat16):
            half_s = seconds_of(lambda: shared.read(images)) / count
    rows, folds = split.training()
    learn = int((folds != folds.max()).sum())
    steps = epochs_for(len(rows)) * math.ceil(learn / BATCH_SIZE)
    fit_s = {}
    for member in shared.members:
        if is_kept(search, member):
            fit_s[member.candidate.name] = 0.0
            continue
        inputs = shared.inputs_of(member, torch.zeros(BATCH_SIZE, shared.width))
        run = partial(
            fit_together, member.task, inputs, torch.zeros(BATCH_SIZE, dtype=torch.int64),
            [Setting(1e-3, 1e-3)] * _FITS, batch_size=BATCH_SIZE, seed=0,
        )  # fmt: skip
        run(epochs=1)
        timed = seconds_of(partial(run, epochs=_STEPS))
        fit_s[member.candidate.name] = timed / _STEPS / _FITS * steps
    precision = call.precision(device.type != "cpu" or half_s <= WORTH_IT * each_s)
    passes = _THROUGH_PASSES * learn * THROUGH_EPOCHS
    through_s = RUN_S + (each_s if precision == "32-true" else half_s) * passes
    plan = Plan(
        features_s=each_s * missing,
        fits=fits_of(folds),
        fit_s=fit_s,
        members=list(shared.members),
        through_s={one.name: through_s for one in THROUGH},
        folds=len(set(folds[folds >= 0].tolist())),
        call=call,
        precision=precision,
    )
    plan.fit_into_minutes()
    return plan


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of the shortest of a few runs."""
    found = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return min(found)
