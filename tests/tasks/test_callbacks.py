"""Claims about the smallest numbers during a fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from benchmarks.measuring import in_turn
from datamodules import Synthetic
from kora.adapters import LinearProbe
from kora.tasks import callbacks
from kora.tasks.callbacks import are_flushed
from tests.support.tasks import Colours, trainer, unbuilt


class Probe(Callback):
    """Looks in each step, and may stop the fit with an error."""

    def __init__(self, error: bool = False) -> None:
        self.seen: list[bool] = []
        self.error = error

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.seen.append(are_flushed())
        if self.error:
            raise RuntimeError("stop")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot do it")
    torch.set_flush_denormal(False)
    yield
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("before", [False, True])
def test_they_are_zero_within_a_fit_and_as_before_behind_it(before: bool, tmp_path: Path) -> None:
    torch.set_flush_denormal(before)
    probe = Probe()
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[probe])
    fit.fit(unbuilt(), datamodule=Colours())
    assert probe.seen == [True] * 3
    assert are_flushed() == before


def test_they_are_as_before_behind_an_error(tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, callbacks=[Probe(error=True)])
    with pytest.raises(RuntimeError, match="stop"):
        fit.fit(unbuilt(), datamodule=Colours())
    assert not are_flushed()


@pytest.mark.parametrize("before", [False, True])
def test_an_error_outside_of_a_fit_changes_nothing(before: bool, tmp_path: Path) -> None:
    class Fails(Callback):
        def on_test_start(self, *args: Any) -> None:
            raise RuntimeError("stop")

    torch.set_flush_denormal(before)
    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, callbacks=[Fails()]).test(unbuilt(), datamodule=Colours(), verbose=False)
    assert are_flushed() == before


@pytest.mark.parametrize("before", [False, True])
def test_they_are_zero_while_a_benchmark_measures_and_as_before_behind_it(before: bool) -> None:
    torch.set_flush_denormal(before)
    seen: list[bool] = []
    in_turn({"probe": lambda: seen.append(are_flushed())}, 1, torch.device("cpu"))
    assert seen == [True] * 2
    assert are_flushed() == before


def test_numpy_does_not_warn_of_them(tmp_path: Path) -> None:
    class Asks(Callback):
        def on_train_start(self, *args: Any) -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for kind in (np.float32, np.float64):
                    np.finfo(kind)

    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False, callbacks=[Asks()])
    fit.fit(unbuilt(), datamodule=Colours())


@pytest.mark.parametrize(
    ("precision", "ratio", "word"),
    [("bf16-mixed", 4.7, True), ("bf16-mixed", 0.5, False), ("32-true", 4.7, False)],
)
def test_a_fit_in_bfloat16_that_is_slower_says_so(
    precision: str, ratio: float, word: bool, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(callbacks, "time_over_float32", lambda dtype: ratio)
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False, precision=precision)
    fit.fit(unbuilt(), datamodule=Colours())
    out = capfd.readouterr().out
    assert ("4.7 times as long in bfloat16" in out and "32-true" in out) == word


def test_how_much_slower_it_is_has_no_exponent(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "time_over_float32", lambda dtype: 190.0)
    fit = trainer(tmp_path, max_steps=1, enable_checkpointing=False, precision="bf16-mixed")
    fit.fit(unbuilt(), datamodule=Colours())
    assert "processor 190.0 times as long" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("wide", "ratio", "cache", "word"),
    [
        (16, 0.31, False, True),
        (16, 0.9, False, False),
        (16, 0.31, True, False),
        (384, 0.31, False, False),
    ],
)
def test_a_fit_in_float32_whose_backbone_would_be_faster_in_bfloat16_says_so(
    wide: int, ratio: float, cache: bool, word: bool, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(callbacks, "time_over_float32", lambda dtype: ratio)
    monkeypatch.setattr(callbacks, "_WIDE", wide)
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    data = Synthetic(train_images=24, test_images=12, val_fraction=0, batch_size=12)
    fit.fit(unbuilt(LinearProbe(), feature_cache=cache), datamodule=data)
    out = capfd.readouterr().out
    assert ("0.31 times as long in bfloat16" in out and "bf16-mixed will be" in out) == word


def test_float16_is_refused_where_it_is_emulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_epochs": 1, "enable_checkpointing": False, "precision": "16-true"}
    for ratio in (74.0, 1.2):
        monkeypatch.setattr(callbacks, "time_over_float32", lambda dtype, r=ratio: r)
        fit = trainer(tmp_path, **options)
        if ratio > 70:
            with pytest.raises(ValueError, match=r"74 times as long in float16.*Use 32-true"):
                fit.fit(unbuilt(), datamodule=Colours())
        else:
            fit.fit(unbuilt(), datamodule=Colours())


def test_the_ratio_is_measured() -> None:
    # Processors without a product in bfloat16 take 40 to 190 times as long.
    assert 0.01 < callbacks.time_over_float32(torch.bfloat16) < 1000
