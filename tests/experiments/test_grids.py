"""The parser accepts every combination of the experiments' grids."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from kora.tune.file import read_tuning
from kora.tune.plan import combinations
from tests.support.cli import REPOSITORY

GRIDS = [
    path.relative_to(REPOSITORY)
    for path in (REPOSITORY / "experiments").glob("*.yaml")
    if "\ntune:" in path.read_text(encoding="utf-8")
]


@pytest.mark.slow
@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_combination_is_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("KORA_SHARED_DATA", "nowhere")
    found = combinations(path, read_tuning(path))
    vary = yaml.safe_load(path.read_text(encoding="utf-8"))["vary"]
    expected = math.prod(len(choices) for choices in vary.values())
    assert len({one.name for one in found}) == len(found) == expected
