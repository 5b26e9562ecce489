"""Claims about the published numbers, and about the configs that stand beside them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from kora.grid.file import read_grid
from kora.paper.numbers import PaperTable, paper_tables
from tests.support.cli import REPOSITORY

TABLES = paper_tables()
AS_PUBLISHED = sorted((REPOSITORY / "configs/paper/as_published").glob("*.yaml"))


def content(path: str | Path) -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))
    return loaded


def test_there_are_three_tables_and_a_figure() -> None:
    assert set(TABLES) == {"table1", "table2", "table3", "figure4"}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_every_published_number_has_a_source_and_is_shown(table: PaperTable) -> None:
    for row in table.rows:
        for metric, printed in row.published.items():
            assert row.in_paper
            assert metric in table.metrics
            assert printed.source.startswith(("KoRA paper (2025)", "author's README"))
            assert float(printed.value) > 0


def test_the_four_rows_of_table_2_are_those_of_the_paper() -> None:
    pairs = [
        (row.published["test/accuracy"].value, row.published["test/weighted_f1"].value)
        for row in TABLES["table2"].rows
        if row.published
    ]
    assert pairs == [
        ("0.7104", "0.8307"), ("0.4667", "0.6364"), ("0.9737", "0.9867"), ("0.9824", "0.9911"),
    ]  # fmt: skip


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_the_commands_lead_to_runs_of_the_experiments_that_are_looked_for(
    table: PaperTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = shlex.split(table.command)
    assert words[:3] == ["kora", "grid", "--config"]
    first = read_grid(Path(words[3])).jobs()[0].args[1]
    assert content(first)["experiment"] == table.experiment
    for row in table.rows:
        if row.config is not None:
            assert content(row.config)["experiment"] == row.experiment


def test_every_config_of_the_published_protocol_stands_beside_a_row_and_says_what_it_is() -> None:
    used = {row.config for table in TABLES.values() for row in table.rows if row.config}
    assert used == {str(path.relative_to(REPOSITORY)) for path in AS_PUBLISHED}
    for path in AS_PUBLISHED:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = config["model"]["init_args"]
        assert config["allow_degenerate"] is True
        assert model["backbone"]["keep_classifier"] is True
        assert model["backbone"]["mean"] != [0.5, 0.5, 0.5]
        adapter = model["adapter"]["init_args"]
        if "readout" in adapter:
            assert adapter["readout"]["init_args"] == {"init": "default", "trainable": False}
        else:
            assert adapter["sites"][-1] == "head"


def test_the_honest_side_has_nothing_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    for table in TABLES.values():
        grid = read_grid(Path(shlex.split(table.command)[3]))
        files = {arg for job in grid.jobs() for arg in job.args if arg.endswith(".yaml")}
        text = "\n".join(Path(file).read_text(encoding="utf-8") for file in files)
        for word in ("allow_degenerate", "keep_classifier", "trainable: false", "mean:", "folders"):
            assert word not in text
        assert "how: first" not in text
