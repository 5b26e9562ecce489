"""Claims about the word on bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest

from kora import slow_bfloat16
from tests.tasks.test_base import Colours, trainer, unbuilt


@pytest.mark.parametrize(
    ("precision", "ratio", "word"),
    [("bf16-mixed", 4.7, True), ("bf16-mixed", 0.5, False), ("32-true", 4.7, False)],
)
def test_a_fit_in_bfloat16_that_is_slower_says_so(
    precision: str, ratio: float, word: bool, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(slow_bfloat16, "bfloat16_over_float32", lambda: ratio)
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, precision=precision)
    fit.fit(unbuilt(), datamodule=Colours())
    out = capfd.readouterr().out
    assert ("4.7 times as long in bfloat16" in out and "32-true" in out) == word


def test_the_ratio_is_measured() -> None:
    assert 0.01 < slow_bfloat16.bfloat16_over_float32() < 100
