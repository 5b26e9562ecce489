"""Claims about the word on bfloat16."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kora.tasks import slow_bfloat16
from tests.tasks.test_base import Colours, trainer, unbuilt


@pytest.mark.parametrize(
    ("precision", "ratio", "word"),
    [("bf16-mixed", 4.7, True), ("bf16-mixed", 0.5, False), ("32-true", 4.7, False)],
)
def test_a_fit_in_bfloat16_that_is_slower_says_so(
    precision: str, ratio: float, word: bool, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(slow_bfloat16, "time_over_float32", lambda dtype: ratio)
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, precision=precision)
    fit.fit(unbuilt(), datamodule=Colours())
    out = capfd.readouterr().out
    assert ("4.7 times as long in bfloat16" in out and "32-true" in out) == word


def test_float16_is_refused_where_it_is_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_epochs": 1, "enable_checkpointing": False, "precision": "16-true"}
    for ratio in (74.0, 1.2):
        monkeypatch.setattr(slow_bfloat16, "time_over_float32", lambda dtype, r=ratio: r)
        fit = trainer(tmp_path, **options)
        if ratio > 70:
            with pytest.raises(ValueError, match=r"74 times as long in float16.*Use 32-true"):
                fit.fit(unbuilt(), datamodule=Colours())
        else:
            fit.fit(unbuilt(), datamodule=Colours())


def test_the_ratio_is_measured() -> None:
    assert 0.01 < slow_bfloat16.time_over_float32(torch.bfloat16) < 100
