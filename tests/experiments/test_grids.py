"""The parser accepts the grids of the experiments, and every form that they vary."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from kora.tune.file import read_tuning
from kora.tune.plan import combinations
from tests.support.cli import REPOSITORY

GRIDS = [
    path.relative_to(REPOSITORY)
    for path in sorted((REPOSITORY / "experiments").glob("*.yaml"))
    if "\ntune:" in path.read_text(encoding="utf-8")
]


def _distinct() -> dict[Path, tuple[object, ...]]:
    """Of each grid the combinations of forms that no earlier grid has, and its first."""
    seen: set[str] = set()
    found = {}
    for path in GRIDS:
        forms = read_tuning(REPOSITORY / path).grid.vary.get("config", ())
        found[path] = tuple(f for f in forms if f is forms[0] or str(f) not in seen)
        seen |= {str(form) for form in forms}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_form_is_accepted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one grid; and every grid with one form, and one value of what else it varies."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("KORA_SHARED_DATA", "nowhere")
    tuning = read_tuning(path)
    others = {key: values[:1] for key, values in tuning.grid.vary.items()}
    vary = others | ({"config": _distinct()[path]} if "config" in others else {})
    found = combinations(path, replace(tuning, grid=replace(tuning.grid, vary=vary)))
    expected = math.prod(len(choices) for choices in vary.values())
    assert len({one.name for one in found}) == len(found) == expected
