"""The view of a W&B project: what `kora dashboard --dry_run` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kora.compare.wandb_dashboard import compared, shown, view_of
from kora.console.formats import HEADLINES
from kora.console.identity import looks
from kora.loggers.wandb_runs import Address
from kora.runs.results import find_runs
from tests.support.cli import kora
from tests.support.comparisons import run, write

Capture = pytest.CaptureFixture[str]


def panels(view: Any) -> dict[str, dict[str, Any]]:
    bank = json.loads(shown(view))["spec"]["section"]["panelBankConfig"]
    return {
        panel["config"].get("chartTitle") or panel["viewType"]: panel["config"]
        for section in bank["sections"]
        for panel in section["panels"]
    }


@pytest.mark.parametrize("metric", HEADLINES)
def test_the_panels_name_what_a_run_logs(metric: str) -> None:
    pytest.importorskip("wandb_workspaces")
    found = panels(view_of(Address("me", "kora"), metric))
    assert found[f"Test {metric}"]["metrics"] == [f"summary_metrics.test/{metric}"]
    assert found[f"Validation {metric}"]["groupArea"] == "stddev"
    assert found["Learning rates"]["metrics"] == ["train/lr_adapter", "train/lr_head"]
    assert ("Training accuracy" in found) == (metric == "accuracy")
    assert found["By trainable parameters"]["xAxisLogScale"]


def test_strategies_have_the_colours_of_the_pictures() -> None:
    pytest.importorskip("wandb_workspaces")
    view = view_of(Address("me", "kora", "demo"), "accuracy", ["LoRA"])
    colours = json.loads(shown(view))["spec"]["section"]["customRunColors"]
    assert list(colours.values()) == [looks(["LoRA"])["LoRA"].hex]


def test_without_a_login_a_library_or_an_experiment_it_says_what_to_do(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(here / "netrc"))
    outcome = kora(capfd, "dashboard", "me/kora")
    assert outcome.code == 2
    assert "Run `wandb login` once" in outcome.err
    outcome = kora(capfd, "dashboard", "me/kora", "--report")
    assert outcome.code == 2
    assert "--report is about one experiment" in outcome.err
    assert kora(capfd, "dashboard", "kora").code == 2
    monkeypatch.setattr("kora.cli.dashboard.find_spec", lambda name: None)
    outcome = kora(capfd, "dashboard", "me/kora")
    assert outcome.code == 2
    assert "pip install 'kora-vit[wandb-workspaces]'" in outcome.err


def test_a_report_is_about_the_trained_runs_that_agree(tmp_path: Path) -> None:
    other = run("LoRA", 2, 0.9, protocol={"dataset": "Other", "sizes": {"test": 9}})
    tested = run("LoRA", 0, 0.7, stage="test", version=1)
    write(tmp_path, run("LoRA", 0, 0.5), run("LoRA", 1, 0.6), tested, other)
    comparison, (left_out,) = compared(find_runs([tmp_path]), "accuracy")
    (group,) = comparison.groups
    assert group.values == (0.5, 0.6)
    assert "LoRA/seed2/version_0: left out, unlike the other 2 runs" in left_out
