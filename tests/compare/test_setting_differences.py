"""Only settings that differ are shown, and those of training in a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kora.compare.command import compare
from kora.compare.setting_differences import setting_differences, training_note
from kora.runs.results import Run
from tests.support.comparisons import run

OPTIMIZER = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001, "fused": None}}


def made(name: str, adapter: dict[str, Any], **training: Any) -> Run:
    kind = name.partition("-")[0]
    settings = {
        "adapter": {"class_path": f"kora.adapters.{kind}", "init_args": adapter},
        "training": {"optimizer": OPTIMIZER, "max_epochs": 3, "source": "source.yaml", **training},
    }
    source = {"experiment": "source"} if settings["training"]["source"] else None
    return run(name, 0, 0.5, settings=settings, source=source)


def grouped(*runs: Run) -> dict[str, list[Run]]:
    return {one.result.strategy: [one] for one in runs}


def test_what_is_the_same_everywhere_is_not_shown() -> None:
    runs = grouped(made("LoRA", {"rank": 8}), made("LoRA-2", {"rank": 8}))
    assert setting_differences(runs) == []
    assert training_note(runs) is None


def test_differing_values_stand_side_by_side_and_as_in_a_config() -> None:
    faster = {**OPTIMIZER, "init_args": {"lr": 0.01, "fused": True}}
    rows = setting_differences(
        grouped(made("LoRA", {"rank": 8}), made("LoRA-2", {"rank": 2}, optimizer=faster))
    )
    assert dict(rows) == {
        "adapter.rank": ("8", "2"),
        "optimizer.lr": ("0.001", "0.01"),
        "optimizer.fused": ("null", "true"),
    }


def test_arguments_that_one_strategy_has_alone_are_in_one_row() -> None:
    rows = setting_differences(
        grouped(
            made("LoRA", {"rank": 8, "alpha": 1.0}),
            made("KoRA", {"rank": 8, "alpha": 2.0, "d_comp": 4, "node_form": None}),
            made("LinearProbe", {}),
        )
    )
    assert dict(rows) == {
        "adapter": ("LoRA", "KoRA", "LinearProbe"),
        "adapter.alpha": ("1.0", "2.0", "–"),
        "adapter's own": ("rank=8", "rank=8, d_comp=4", "–"),
    }


def test_strategies_that_differ_by_nature_are_no_difference_of_training() -> None:
    # As `make demo` trains them: a fusion reads adapters of its own in the place of a source stage.
    runs = [
        made("LoRA", {"rank": 8}), made("KoRA", {"rank": 8, "d_comp": 8}),
        made("AdapterFusion", {"sources": ["a.yaml", "b.yaml"]}, source=None),
    ]  # fmt: skip
    notes = " ".join(compare(runs).notes)
    assert "differ:" not in notes
    assert "source" in dict(setting_differences(grouped(*runs))), "it is in the table"


def test_a_sentence_names_the_rare_value_first() -> None:
    runs = [made(name, {}) for name in ("KoRA", "VPT", "SSF")]
    note = training_note(grouped(*runs, made("LoRA", {}, max_epochs=20)))
    assert note == ("Training settings that differ: max_epochs is 20 in LoRA, 3 in all others.")


def test_a_source_stage_that_carried_nothing_over_is_none() -> None:
    probe = made("LinearProbe", {})
    probe = probe._replace(result=replace(probe.result, source=None))
    assert training_note(grouped(probe, made("BitFit", {}, source=None))) is None
