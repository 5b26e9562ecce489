"""The benchmark of the framework's overhead runs in its smallest form, on a real fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.benchmarks import refused, written


@pytest.fixture(autouse=True)
def _own_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the fit sets it; monkeypatch puts it back


def test_each_step_of_the_fit_has_a_bare_step_beside_it(tmp_path: Path) -> None:
    record, printed = written("overhead", tmp_path, "--batch", "1", "--repeats", "2")
    steps = record["steps"]
    assert list(steps) == ["bare loop", "kora fit", "Lightning alone"]
    for one in steps.values():
        assert len(one["seconds"]) == len(one["cpu seconds"]) == 2
        assert min(one["seconds"]) > 0
    # Five forward and backward passes are in a block of each: neither is without its work.
    for name in ("kora fit", "Lightning alone"):
        assert 0.2 < steps[name]["seconds / bare loop"][0] < 20
    assert f"{record['more_ms']:+.2f} ms more" in printed
    assert f"Lightning alone {record['alone_ms']:+.2f} ms." in printed


def test_a_wrong_option_is_one_clear_error() -> None:
    assert "expected 1 or more" in refused("overhead", "--batch", "0")
    assert "invalid choice" in refused("overhead", "--adapter", "DoRA")
