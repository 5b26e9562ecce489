"""The trials of a combination, stored by Optuna in a file.

The settings of a trial depend only on the seed of the search, the trial's number and the finished
trials. So a search that was stopped resumes as if it had not been.
"""

from __future__ import annotations

import itertools
import math
import random
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from kora.console.errors import first_line
from kora.tune.file import Dimension, Tuning
from kora.tune.plan import Combination

__all__ = ["STUDIES", "Search", "Trial", "opened"]

STUDIES = "studies.sqlite3"
#: Random trials, before the sampler uses their results.
_STARTUP = {"tpe": 5, "gp": 4}
_BATCH = 8
#: Finished trials before a range is widened: the best of one or two says little.
_BEFORE_WIDENING = 4
_PATIENCE_S = 60.0


class Trial(NamedTuple):
    """A trial as it is stored.

    Args:
        number: From 0, within its combination.
        values: Its settings, by option.
        state: `done`, `failed`, or `open`: started, without a result yet.
        value: Mean of the metric over the seeds; None if it is not done.
        seconds: Seconds of training; of a run that failed, of all that it did.
        why: Why it failed.
        folders: Folders of its runs.
    """

    number: int
    values: Mapping[str, Any]
    state: str
    value: float | None = None
    seconds: float = 0.0
    why: str = ""
    folders: tuple[str, ...] = ()


@dataclass
class Search:
    """The trials of one combination."""

    combination: Combination
    tuning: Tuning
    study: Any

    @property
    def name(self) -> str:
        """Name of the study."""
        return str(self.study.study_name)

    @property
    def wanted(self) -> int:
        """Number of trials to run; fewer than asked for only if a grid has fewer points."""
        if self.tuning.sampler != "grid":
            return self.tuning.trials
        return min(self.tuning.trials, math.prod(len(d.choices) for d in self.combination.space))

    @property
    def at_once(self) -> int:
        """Number of trials that a batched fit trains at most, before the sampler knows more."""
        startup = _STARTUP.get(self.tuning.sampler)
        if startup is None:  # it learns nothing from results
            return 64
        over = sum(one.state != "open" for one in self.trials())
        return _BATCH if over >= startup else startup - over

    def trials(self) -> list[Trial]:
        """The trials that count, by number: the first `wanted`, even if there are more."""
        found = [_plain(frozen) for frozen in self.study.get_trials(deepcopy=False)]
        return [one for one in found if one is not None and one.number < self.wanted]

    @property
    def space(self) -> tuple[Dimension, ...]:
        """What the next trial draws from: the file's ranges, widened if a best trial was at an end.

        An end beyond which a trial failed, as it may not be allowed, is that of the file again, or
        what else was done beyond.
        """
        space = self.combination.space
        done = self._done()
        for count in range(_BEFORE_WIDENING, len(done) + 1):
            best = self._best(done[:count])
            assert best is not None
            if count == _BEFORE_WIDENING or best is done[count - 1]:
                space = tuple(d.widened(best.values[d.option]) for d in space)
        return self._narrowed(space)

    @property
    def searched(self) -> tuple[Dimension, ...]:
        """What finished trials drew from: the file's ranges, widened as far as one of them knew."""
        done = [
            one.distributions
            for one in self.study.get_trials(deepcopy=False)
            if one.number < self.wanted and one.state.name == "COMPLETE"
        ]
        return self._narrowed(
            one
            if one.choices
            else replace(
                one,
                low=min([one.low, *(drawn[one.option].low for drawn in done)]),
                high=max([one.high, *(drawn[one.option].high for drawn in done)]),
            )
            for one in self.combination.space
        )

    def _narrowed(self, space: Iterable[Dimension]) -> tuple[Dimension, ...]:
        """Widened ranges, less each end beyond which a trial failed."""
        found = []
        for given, now in zip(self.combination.space, space, strict=True):
            if given != now:
                done, failed = (
                    [one.values[now.option] for one in self.trials() if one.state == state]
                    for state in ("done", "failed")
                )
                low, high = min([given.low, *done]), max([given.high, *done])
                low = low if any(value < low for value in failed) else now.low
                high = high if any(value > high for value in failed) else now.high
                now = replace(now, low=low, high=high)
            found.append(now)
        return tuple(found)

    def is_beyond(self, trial: Trial) -> bool:
        """Whether a value of a trial lies in what was added to a range of the file."""
        return any(
            not one.low <= trial.values[one.option] <= one.high
            for one in self.combination.space
            if not one.choices
        )

    def best(self) -> Trial | None:
        """The trial with the best value, the first of equals; None while none is done."""
        return self._best(self._done())

    @property
    def finished(self) -> int:
        """Number of trials with a result, also those beyond the number asked for."""
        over = ("COMPLETE", "FAIL")
        return sum(one.state.name in over for one in self.study.get_trials(deepcopy=False))

    def _done(self) -> list[Trial]:
        return [one for one in self.trials() if one.value is not None]

    def _best(self, done: Sequence[Trial]) -> Trial | None:
        sign = -1 if self.combination.mode == "max" else 1
        return min(done, key=lambda one: (sign * (one.value or 0.0), one.number), default=None)

    def open(self) -> list[Trial]:
        """Trials that were started and have no result."""
        return [one for one in self.trials() if one.state == "open"]

    def ask(self) -> Trial:
        """A new trial."""
        number = len(self.study.get_trials(deepcopy=False))
        self.study.sampler = _sampler(self.tuning, number, self.space)
        return self._suggested(self.study.ask())

    def again(self, trial: Trial) -> Trial:
        """An open trial again; draws values that were still missing when it was lost."""
        import optuna

        (frozen,) = (f for f in self.study.get_trials(deepcopy=False) if f.number == trial.number)
        self.study.sampler = _sampler(self.tuning, trial.number, self.space)
        return self._suggested(optuna.trial.Trial(self.study, frozen._trial_id), frozen.params)

    def _suggested(self, asked: Any, known: Mapping[str, Any] | None = None) -> Trial:
        known = known or {}  # drawn from a range that may have been another one
        values = {
            one.option: known[one.option] if one.option in known else _suggest(asked, one)
            for one in self.space
        }
        return Trial(asked.number, values, "open")

    def tell(
        self, trial: Trial, value: float | None, *, seconds: float, folders: Sequence[Path],
        why: str = "",
    ) -> None:  # fmt: skip
        """Store the result of a trial; a value of None: it failed."""
        import optuna

        frozen = self.study.get_trials(deepcopy=False)[trial.number]
        asked = optuna.trial.Trial(self.study, frozen._trial_id)
        asked.set_user_attr("seconds", seconds)
        asked.set_user_attr("folders", [str(folder) for folder in folders])
        if value is None:
            asked.set_user_attr("why", why)
            self.study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self.study.tell(asked, value)


@contextmanager
def opened(folder: Path, found: Sequence[Combination], tuning: Tuning) -> Iterator[list[Search]]:
    """The studies of a search, locked against other processes.

    Raises:
        ValueError: Optuna is not installed.
        RuntimeError: another process is at work on them, or their file is damaged.
    """
    try:
        import optuna
    except ImportError as error:
        raise ValueError("kora tune needs Optuna: pip install 'kora-vit[tune]'") from error
    from datamodules.locks import acquired, lock_at

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / STUDIES
    lock = lock_at(folder / ".lock")
    if not acquired(lock, timeout_s=0):
        raise RuntimeError(
            f"{folder}: another kora tune is at work on this search. Wait for it; --jobs N runs "
            "several trials at once."
        )
    try:
        _require_tables(file)
        try:
            storage = optuna.storages.RDBStorage(
                _address(file), engine_kwargs={"connect_args": {"timeout": _PATIENCE_S}}
            )
            searches = [Search(one, tuning, _study(optuna, storage, one, tuning)) for one in found]
            for search in searches:
                search.trials()  # reads all of them, so that damage is found here
        except Exception as error:  # of sqlite3, SQLAlchemy, alembic or Optuna
            raise RuntimeError(
                f"{file}: cannot be read as the studies of a search ({first_line(error)}). Move it "
                "away: the same command then draws the same trials, and finds those runs that "
                "are finished."
            ) from error
        try:
            yield searches
        except optuna.exceptions.StorageInternalError as error:
            raise RuntimeError(
                f"{file}: cannot be read or written any more ({error}). Make room, or check "
                "whether it is damaged; then repeat the command to resume."
            ) from error
        storage.engine.dispose()
    finally:
        lock.release()


def _require_tables(file: Path) -> None:
    """Refuse a database with triggers or views, which Optuna's studies do not have."""
    if not file.is_file():
        return
    found = "SELECT count(*) FROM sqlite_master WHERE type IN ('trigger', 'view')"
    try:
        with closing(
            sqlite3.connect(f"file:{quote(str(file))}?mode=ro&nolock=1", uri=True)
        ) as base:
            computes = base.execute(found).fetchone()[0]
    except sqlite3.Error:
        return  # Optuna reports what is wrong with it
    if computes:
        raise RuntimeError(
            f"{file}: it holds triggers or views, so kora tune did not make it. Move it "
            "away: the same command then draws the same trials."
        )


def _address(file: Path) -> str:
    """Address of the database, which needs no locks of its own: only one process uses it."""
    from datamodules.locks import has_locks

    return (
        f"sqlite:///{file}"
        if has_locks(file.parent)
        else f"sqlite:///file:{file}?nolock=1&uri=true"
    )


def _study(optuna: Any, storage: Any, one: Combination, tuning: Tuning) -> Any:
    study = optuna.create_study(
        storage=storage, study_name=one.study(tuning), load_if_exists=True,
        direction="maximize" if one.mode == "max" else "minimize",
    )  # fmt: skip
    for key, value in (("combination", one.name), ("metric", one.metric)):
        study.set_user_attr(key, value)
    if tuning.sampler == "grid" and "points" not in study.user_attrs:
        values = [dimension.choices for dimension in one.space]
        points = list(itertools.product(*values))
        random.Random(tuning.seed).shuffle(points)  # so that a shortened search covers all of it
        for point in points:
            names = (dimension.option for dimension in one.space)
            study.enqueue_trial(dict(zip(names, point, strict=True)), skip_if_exists=True)
        study.set_user_attr("points", len(points))  # last: if killed before, they are added again
    return study


def _sampler(tuning: Tuning, number: int, space: Sequence[Dimension]) -> Any:
    """A new sampler for each trial, so that a resumed search draws as an uninterrupted one."""
    import optuna

    seed = random.Random(f"{tuning.seed} {number}").getrandbits(31)
    if tuning.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP["tpe"])
    if tuning.sampler != "gp":
        return optuna.samplers.RandomSampler(seed=seed)

    class Wide(optuna.samplers.GPSampler):
        """Also uses trials from earlier, narrower ranges, which Optuna would leave out."""

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {one.option: _distribution(one) for one in space}

    return Wide(seed=seed, n_startup_trials=_STARTUP["gp"])


def _distribution(one: Dimension) -> Any:
    import optuna

    if one.choices:
        return optuna.distributions.CategoricalDistribution(one.choices)
    if one.whole:
        return optuna.distributions.IntDistribution(int(one.low), int(one.high), log=one.log)
    return optuna.distributions.FloatDistribution(one.low, one.high, log=one.log)


def _suggest(asked: Any, one: Dimension) -> Any:
    if one.choices:
        return asked.suggest_categorical(one.option, one.choices)
    if one.whole:
        return asked.suggest_int(one.option, int(one.low), int(one.high), log=one.log)
    return asked.suggest_float(one.option, one.low, one.high, log=one.log)


def _plain(frozen: Any) -> Trial | None:
    """A trial of Optuna as a `Trial`; None if it only waits in the queue."""
    states = {"COMPLETE": "done", "FAIL": "failed", "RUNNING": "open"}
    if frozen.state.name not in states:
        return None
    if frozen.value is not None and not math.isfinite(frozen.value):  # `tell` stores none
        raise ValueError(f"trial {frozen.number} has the value {frozen.value}")
    more = frozen.user_attrs
    return Trial(
        frozen.number, dict(frozen.params), states[frozen.state.name], frozen.value,
        more.get("seconds", 0.0), more.get("why", ""), tuple(more.get("folders", ())),
    )  # fmt: skip
