"""The picture of a search has every combination in it, in files of eight."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import pytest

from kora.tune.figures import trial_pictures
from tests.support.tune_factory import RATE, combination, searches

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'kora-vit[tune]'")


def test_more_than_eight_combinations_go_into_further_files(tmp_path: Path) -> None:
    found = [combination(f"strategy {n}, with a long name_of_{n}") for n in range(8)]
    found.append(combination("BitFit", (RATE,)))
    with searches(tmp_path / "studies", *found) as opened:
        for search in opened:
            for value in (0.5, None):
                search.tell(search.ask(), value, seconds=1.0, folders=[], why="no room")
        written = trial_pictures(opened, tmp_path / "trials.png")
    assert [path.name for path in written] == ["trials.png", "trials_2.png"]
    tall, low = (matplotlib.image.imread(path) for path in written)
    assert tall.shape[0] > 5 * low.shape[0]
    assert tall[..., :3].std() > 0.01


def test_a_search_without_a_finished_trial_is_drawn_empty(tmp_path: Path) -> None:
    with searches(tmp_path / "studies") as opened:
        (path,) = trial_pictures(opened, tmp_path / "trials.png")
    assert path.is_file()


def test_a_name_with_dollars_is_no_mathematics(tmp_path: Path) -> None:
    with searches(tmp_path / "studies", combination(r"LoRA $\frac$")) as opened:
        (path,) = trial_pictures(opened, tmp_path / "trials.png")
    assert path.is_file()
