"""Trials depend on what is kept, never on the process that asks for them."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from kora.tune.file import Sampler
from kora.tune.report import equality
from kora.tune.study import Search, Trial
from tests.support.tune_factory import DROPOUT, RATE, combination, searches, tuning

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'kora-vit[tune]'")


def told(search: Search, trial: Trial) -> Trial:
    """Ended with a value that its rate decides."""
    rate = trial.values[RATE.option]
    search.tell(trial, 1 - abs(rate - 0.01), seconds=1.0, folders=[Path("runs/x")])
    return trial


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 7), ("gp", 6), ("random", 3)])
def test_a_search_in_pieces_tries_what_one_in_a_piece_tries(
    tmp_path: Path, sampler: Sampler, trials: int
) -> None:
    """Two trials more than there are at random before the sampler goes by what it has seen."""
    given = tuning(trials, sampler=sampler)
    with searches(tmp_path / "whole", given=given) as (search,):
        whole = [told(search, search.ask()).values for _ in range(trials)]
    pieces = []
    for _ in range(trials):
        with searches(tmp_path / "pieces", given=given) as (search,):
            pieces.append(told(search, search.ask()).values)
    assert pieces == whole
    assert len({values[RATE.option] for values in whole}) == trials


def test_every_combination_is_drawn_the_same_first_values(tmp_path: Path) -> None:
    other = combination("DoRA")
    with searches(tmp_path, combination(), other) as (one, two):
        assert [one.ask().values for _ in range(5)] == [two.ask().values for _ in range(5)]


def test_another_seed_or_space_begins_another_study(tmp_path: Path) -> None:
    with searches(tmp_path) as (search,):
        told(search, search.ask())
    with searches(tmp_path, given=tuning(seed=1)) as (search,):
        assert search.trials() == []
    with searches(tmp_path, combination(space=(RATE,))) as (search,):
        assert search.trials() == []
    with searches(tmp_path, given=tuning(7)) as (search,):
        assert len(search.trials()) == 1, "more trials go on with it"


def test_an_open_trial_is_found_and_has_its_values_again(tmp_path: Path) -> None:
    with searches(tmp_path) as (search,):
        values = search.ask().values
        search.study.ask().suggest_float(RATE.option, RATE.low, RATE.high, log=True)  # and killed
    with searches(tmp_path) as (search,):
        first, second = search.open()
        assert search.again(first).values == values
        assert search.again(second).values.keys() == values.keys()
        told(search, search.again(second))
        assert [trial.state for trial in search.trials()] == ["open", "done"]


def test_a_grid_tries_each_point_once_and_then_is_complete(tmp_path: Path) -> None:
    one = combination(space=(DROPOUT,))
    with searches(tmp_path, one, given=tuning(9, sampler="grid")) as (search,):
        assert search.wanted == 3
        tried = [search.ask().values[DROPOUT.option] for _ in range(3)]
    assert sorted(tried) == list(DROPOUT.choices)


@pytest.mark.parametrize(("mode", "best"), [("max", 0.9), ("min", 0.1)])
def test_the_best_follows_the_mode_and_failed_trials_are_kept_apart(
    tmp_path: Path, mode: str, best: float
) -> None:
    with searches(tmp_path, combination(mode=mode)) as (search,):
        for value in (0.5, 0.9, None, 0.1):
            search.tell(search.ask(), value, seconds=2.0, folders=[], why="no room")
        found = search.best()
        assert found is not None
        assert found.value == best
        assert [trial.why for trial in search.trials()] == ["", "", "no room", ""]


def test_trials_beyond_the_number_asked_for_do_not_count(tmp_path: Path) -> None:
    with searches(tmp_path) as (search,):
        for value in (0.5, 0.6, 0.9):
            search.tell(search.ask(), value, seconds=2.0, folders=[])
    with searches(tmp_path, given=tuning(2)) as (search,):
        assert len(search.trials()) == 2
        assert search.best() == search.trials()[1]


def test_a_range_is_widened_by_a_third_where_the_best_trial_lies_at_its_end(tmp_path: Path) -> None:
    with searches(tmp_path, given=tuning(9, sampler="gp")) as (search,):
        for value in (0.1, 0.2, 0.3):
            search.tell(tried(search, 0.09), value, seconds=1.0, folders=[])
        assert search.space[0] == RATE, "three trials say little"
        search.tell(tried(search, 0.002), 0.2, seconds=1.0, folders=[])
        assert search.space[0] == replace(RATE, high=pytest.approx(1.0))
        assert search.space[1] == DROPOUT
        search.tell(tried(search, 0.002), 0.9, seconds=1.0, folders=[])
        assert search.space[0].high == pytest.approx(1.0), "what was tried stays within the range"
        drawn = {search.ask().values[RATE.option] for _ in range(4)}
        assert all(1e-4 <= rate <= 1.0 for rate in drawn)
    with searches(tmp_path, given=tuning(9, sampler="gp")) as (search,):
        assert search.space[0].high == pytest.approx(1.0), "known from the trials alone"


def test_an_end_beyond_which_a_trial_failed_is_not_drawn_from_again(tmp_path: Path) -> None:
    one = combination(space=(RATE,))
    with searches(tmp_path, one, given=tuning(20)) as (search,):
        for rate, value in ((0.002, 0.1), (0.003, 0.2), (0.09, 0.5), (0.004, 0.3)):
            search.tell(tried(search, rate), value, seconds=1.0, folders=[])
        good, bad = tried(search, 0.2), tried(search, 0.7)
        assert [search.is_beyond(trial) for trial in (*search.trials()[:1], good, bad)] == [
            False, True, True
        ]  # fmt: skip
        search.tell(good, 0.4, seconds=1.0, folders=[])
        search.tell(bad, None, seconds=1.0, folders=[], why="expected a probability in [0, 1)")
        assert search.space[0] == search.searched[0] == replace(RATE, high=0.2)
        search.tell(tried(search, 0.15), None, seconds=1.0, folders=[], why="the loss is nan")
        assert search.space[0] == replace(RATE, high=0.2), "what was done stays"
        search.tell(tried(search, 0.19), 0.9, seconds=1.0, folders=[])
        (said,) = (one for one in equality([search], tuning(20)) if "At the edge" in one)
        assert "(model.optimizer.lr=0.19, beyond which a trial failed)" in said


def test_open_trials_keep_their_values_when_a_range_widens(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    one = combination(space=(RATE,))
    with searches(tmp_path, one, given=tuning(9)) as (search,):
        before = search.ask()
        for rate, value in ((0.002, 0.1), (0.003, 0.2), (0.09, 0.5), (0.004, 0.3)):
            search.tell(tried(search, rate), value, seconds=1.0, folders=[])
        assert search.space != one.space
        assert search.again(before).values == before.values
    assert not [one for one in recwarn if "Inconsistent" in str(one.message)]


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_before_it_is_known_whether_they_train_together_only_random_trials_are_drawn(
    tmp_path: Path, sampler: Sampler
) -> None:
    with searches(tmp_path, given=tuning(99, sampler=sampler)) as (search,):
        first = search.at_once
        assert first <= 5
        for _ in range(first):
            told(search, search.ask())
        assert search.at_once == 8


def test_where_fewer_is_better_the_lowest_value_widens(tmp_path: Path) -> None:
    one = combination(space=(RATE,), mode="min")
    with searches(tmp_path, one, given=tuning(9)) as (search,):
        for rate, value in ((0.01, 0.5), (0.02, 0.6), (0.00011, 0.1), (0.03, 0.7)):
            search.tell(tried(search, rate), value, seconds=1.0, folders=[])
        assert search.space[0] == replace(RATE, low=pytest.approx(1e-5))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE trial_user_attributes SET value_json = '{'",
        "UPDATE trial_params SET distribution_json = '[1]'",
        "UPDATE trials SET state = 'LOST'",
        "UPDATE trial_values SET value_type = 'INF_POS', value = NULL",
    ],
)
def test_damage_within_the_studies_is_told_when_they_are_opened(
    change: str, tmp_path: Path
) -> None:
    with searches(tmp_path) as (search,):
        told(search, search.ask())
    with contextlib.closing(sqlite3.connect(tmp_path / "studies.sqlite3")) as file:
        file.execute(change)
        file.commit()
    message = r"studies\.sqlite3: cannot be read .*Move it away"
    with pytest.raises(RuntimeError, match=message), searches(tmp_path):
        pass


def tried(search: Search, rate: float) -> Trial:
    """A trial of this rate."""
    others = {one.option: one.choices[0] for one in search.combination.space if one.choices}
    search.study.enqueue_trial({RATE.option: rate, **others})
    return search.ask()
