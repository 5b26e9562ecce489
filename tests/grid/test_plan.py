"""Claims about the configs of a grid's runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kora.grid.file import read_grid
from kora.grid.plan import all_resolved, resolved
from kora.training import lightning_cli
from tests.support.cli import REPOSITORY


def test_a_combination_is_parsed_once_for_all_its_seeds_and_all_configs_are_as_if_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    path = Path("configs/grids/quickstart_depth.yaml")
    jobs = read_grid(path).jobs()[:6]
    alone = [resolved(path, job) for job in jobs]
    asked: list[Any] = []
    parse = lightning_cli.parse
    monkeypatch.setattr(lightning_cli, "parse", lambda args: asked.append(args) or parse(args))
    together = all_resolved(path, jobs)
    assert together == alone
    assert [config["seed_everything"] for config in together] == [0, 1, 2] * 2
    assert len(asked) == 2
    together[0]["model"].clear()  # and none shares its tables with another
    assert together[1:] == alone[1:]
