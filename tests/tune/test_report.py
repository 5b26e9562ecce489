"""What a search says of how far it looked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kora.tune.file import Dimension
from kora.tune.report import equality, record, rows, set_aside, trials_csv
from kora.tune.study import Search
from tests.support.tune_factory import RATE, combination, searches, tuning

pytest.importorskip("optuna", reason="optuna is not installed: pip install 'kora-vit[tune]'")


def searched(search: Search, *found: tuple[float, float]) -> Search:
    """With these rates tried, and what came of each."""
    for rate, value in found:
        search.study.enqueue_trial({RATE.option: rate})
        search.tell(search.ask(), value, seconds=1.0, folders=[])
    return search


def test_the_table_says_how_many_decades_lie_between_the_best_and_the_edge(tmp_path: Path) -> None:
    one = combination(space=(RATE,))
    with searches(tmp_path, one, given=tuning(4)) as found:
        searched(found[0], (1e-3, 0.9), (1e-2, 0.5))
        heads, (row,) = rows(found)
        assert row[heads.index("to the edge")] == "lr=1"
        assert not any("edge" in sentence for sentence in equality(found, tuning(4)))


def test_a_best_trial_at_the_edge_is_told_and_so_is_the_wider_range(tmp_path: Path) -> None:
    one = combination(space=(RATE,))
    with searches(tmp_path, one, given=tuning(9)) as found:
        searched(found[0], (1e-3, 0.4), (1e-2, 0.5), (9.9e-2, 0.9))
        said = " ".join(equality(found, tuning(9)))
        assert "At the edge: LoRA (model.optimizer.lr=0.099)" in said
        assert "--trials" in said
        searched(found[0], (2e-3, 0.4))
        said = " ".join(equality(found, tuning(9)))
        assert "At the edge" in said, "no trial has drawn from the wider range"
        searched(found[0], (3e-3, 0.4))
        said = " ".join(equality(found, tuning(9)))
        assert "Widened, as the best trial was at an end: LoRA (model.optimizer.lr 0.0001 to 1" in (
            said
        )
        assert "At the edge" not in said
        kept = record(found, tuning(9))["combinations"][0]
        assert kept["space"] != kept["searched"]


def test_below_one_there_is_no_whole_number_to_ask_for(tmp_path: Path) -> None:
    one = combination(space=(Dimension(RATE.option, 1, 100, log=True),))
    with searches(tmp_path, one, given=tuning(4)) as found:
        searched(found[0], (1, 0.9), (10, 0.5))
        assert not any("edge" in sentence for sentence in equality(found, tuning(4)))
        searched(found[0], (99, 0.95))
        assert any("At the edge" in sentence for sentence in equality(found, tuning(4)))


def test_results_of_another_search_are_moved_and_can_still_be_run(tmp_path: Path) -> None:
    best = tmp_path / "best/lora.yaml"
    best.parent.mkdir()
    best.write_text("model: {}")
    (tmp_path / "best.yaml").write_text(f"vary: {{config: [[{best}]]}}")
    with searches(tmp_path, given=tuning(4)) as found:
        assert set_aside(tmp_path, found) is None, "there is no record"
        (tmp_path / "record.json").write_text(json.dumps(record(found, tuning(4))))
        assert set_aside(tmp_path, found) is None, "these are its own results"
    with searches(tmp_path, combination(space=(RATE,)), given=tuning(4)) as found:
        assert set_aside(tmp_path, found) == tmp_path / "earlier_1"
        moved = (tmp_path / "earlier_1/best.yaml").read_text()
        assert f"[[{tmp_path / 'earlier_1/best/lora.yaml'}]]" in moved
        assert (tmp_path / "earlier_1/best/lora.yaml").is_file()
        assert not (tmp_path / "best.yaml").exists()
        assert set_aside(tmp_path, found) is None


def test_every_trial_is_a_line_with_its_value_and_settings(tmp_path: Path) -> None:
    one = combination(space=(RATE,))
    with searches(tmp_path, one, given=tuning(4)) as found:
        searched(found[0], (1e-3, 0.9), (1e-2, 0.5))
        assert trials_csv(found).splitlines() == [
            "combination,trial,metric,value,seconds,state,model.optimizer.lr",
            "LoRA,0,best_val/accuracy,0.9,1.0,done,0.001",
            "LoRA,1,best_val/accuracy,0.5,1.0,done,0.01",
        ]
