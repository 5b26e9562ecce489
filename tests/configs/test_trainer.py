"""The trainer fragments for a card: what they set, and that it runs where there is none."""

from __future__ import annotations

from functools import partialmethod
from pathlib import Path

import pytest
import torch
import yaml

import tests.support.families  # noqa: F401  (tiny_vit)
from kora.tasks import ClassificationTask
from kora.training.lightning_cli import parse
from tests.support.cli import REPOSITORY, here, kora, results

__all__ = ["here"]

CARDS = ("a100", "h100")


def fragment(card: str) -> Path:
    return REPOSITORY / "configs" / "trainer" / f"{card}.yaml"


@pytest.mark.parametrize("card", CARDS)
def test_the_optimiser_is_fused_and_keeps_the_settings_that_it_has(
    card: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    args = ["fit", "--config", "configs/cifar100.yaml"]
    before = parse(args).resolved()["model"]["init_args"]["optimizer"]["init_args"]
    after = parse([*args, "--config", str(fragment(card))]).resolved()
    optimizer = after["model"]["init_args"]["optimizer"]
    assert optimizer["class_path"] == "torch.optim.AdamW"
    assert optimizer["init_args"] == {**before, "fused": True}
    assert after["trainer"]["precision"] == "bf16-mixed"
    assert after["model"]["init_args"]["compile"] is True


def test_both_cards_get_the_same_as_neither_was_measured() -> None:
    one, other = (yaml.safe_load(fragment(card).read_text()) for card in CARDS)
    assert one == other
    assert all("Not measured on such a card" in fragment(card).read_text() for card in CARDS)


def test_what_needs_no_card_and_no_compiler_runs_without_them(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = kora(
        capfd, "fit", "--config", here / "tiny.yaml", "--config", fragment("a100"),
        "--trainer.accelerator", "cpu", "--model.compile", "false",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    run = here / "runs" / "tiny" / "LoRA" / "seed0" / "version_0"
    settings = results(run)["settings"]["training"]
    assert settings["precision"] == "bf16-mixed"
    assert settings["optimizer"]["init_args"]["fused"] is True


def test_what_needs_no_card_runs_compiled(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Graphs, and no C++ of them; tests/adapters/test_contract.py has that a graph in C++ is equal.
    traced = partialmethod(ClassificationTask.compile, backend="eager")
    monkeypatch.setattr(ClassificationTask, "compile", traced)
    torch.compiler.reset()
    small = ["--model.backbone.name", "tiny_vit", "--model.adapter.sites", "[qkv]"]
    outcome = kora(
        capfd, "fit", "--config", here / "tiny.yaml", "--config", fragment("h100"),
        "--trainer.accelerator", "cpu", *small,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    run = here / "runs" / "tiny" / "LoRA" / "seed0" / "version_0"
    assert results(run)["settings"]["training"]["precision"] == "bf16-mixed"
