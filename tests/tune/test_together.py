"""Trials on cached features train as one batched fit, and each gets the score of its own fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.tune.together import train_list
from tests.support.cli import kora, results, tiny_config, write_config

pytestmark = [pytest.mark.runs, pytest.mark.fits]
pytest.importorskip("optuna", reason="optuna is not installed: pip install 'kora-vit[tune]'")

Capture = pytest.CaptureFixture[str]
SPACE: dict[str, Any] = {
    "model.head_lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "model.optimizer.weight_decay": {"low": 1e-3, "high": 1.0, "log": True},
}
NODES = "model.adapter.node_form"
PROBE = ("kora.adapters.MultiLayerProbe", {"cls_blocks": [-2, -1]})
SIDE = ("kora.adapters.KoRA", {"node_form": {"class_path": "PaperForm", "init_args": {
    "rank": 2, "inject": False, "dropout": 0.0}}, "d_comp": 4})  # fmt: skip


def config(adapter: tuple[str, dict[str, Any]], **trainer: Any) -> dict[str, Any]:
    made = tiny_config()
    options = made["model"]["init_args"]
    options["adapter"] = {"class_path": adapter[0], "init_args": adapter[1]}
    options["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}
    made["trainer"] |= {"max_epochs": 3, **trainer}
    return made


def search(folder: Path, *names: str, **tune: Any) -> str:
    (folder / "search.yaml").write_text(yaml.safe_dump({
        "base": "tiny.yaml", "vary": {"config": [f"{name}.yaml" for name in names]},
        "tune": {"trials": 3, "space": SPACE, **tune}, "seeds": [0, 1],
    }))  # fmt: skip
    return "search.yaml"


def told(folder: Path, rows: list[list[str]]) -> dict[str, Any]:
    """What comes of trials of one seed each."""
    path = folder / "list.json"
    path.write_text(json.dumps({"metric": "best_val/accuracy", "trials": [[r] for r in rows]}))
    train_list(path)
    found: dict[str, Any] = json.loads((folder / "list.ended.json").read_text())
    return found


@pytest.mark.parametrize("adapter", [PROBE, SIDE], ids=["MultiLayerProbe", "KoRA-side"])
def test_each_trial_has_the_score_that_its_own_fit_has(
    adapter: Any, here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_config(here / "tiny.yaml", config(adapter))
    rates = [("0.03", "0.01"), ("0.0003", "0.5"), ("0.1", "0.1")]
    rows = [
        ["--config", "tiny.yaml", f"--model.head_lr={lr}",
         f"--model.optimizer.weight_decay={decay}", "--seed_everything=4"]
        for lr, decay in rates
    ]  # fmt: skip
    scores = told(here, rows)["scores"]
    assert not (here / "runs").exists()
    monkeypatch.setattr("kora.training.batched_fit._MOST_ON_CPU", 1)  # large heads: in turn
    assert told(here, rows)["scores"] == pytest.approx(scores, abs=1e-6)
    for row, score in zip(rows, scores, strict=True):
        outcome = kora(capfd, "fit", *row, "--leave_out_test=true")
        assert outcome.code == 0, outcome.err
        folder = max(here.glob("runs/*/*/seed4/version_*"), key=os.path.getmtime)
        assert results(folder)["metrics"]["best_val/accuracy"] == pytest.approx(score, abs=1e-6)
    assert len(set(scores)) > 1


def test_a_trial_is_over_where_its_own_fit_stops_early(here: Path, capfd: Capture) -> None:
    stop: dict[str, Any] = {"class_path": "EarlyStopping", "init_args": {
        "monitor": "val/accuracy", "mode": "max", "patience": 1}}  # fmt: skip
    write_config(here / "tiny.yaml", config(PROBE, max_epochs=12, callbacks=[stop]))
    rates = ("0.3", "0.0001", "0.03", "0.003")
    rows = [["--config", "tiny.yaml", f"--model.head_lr={lr}"] for lr in rates]
    scores, epochs = told(here, rows)["scores"], []
    for row, score in zip(rows, scores, strict=True):
        assert kora(capfd, "fit", *row, "--leave_out_test=true").code == 0
        folder = max(here.glob("runs/*/*/seed*/version_*"), key=os.path.getmtime)
        assert results(folder)["metrics"]["best_val/accuracy"] == pytest.approx(score, abs=1e-6)
        epochs.append(len((folder / "metrics.csv").read_text().splitlines()) - 1)
    assert min(epochs) < max(epochs)
    for odd in ({"min_delta": 0.1}, {"mode": "min"}):
        other = stop | {"init_args": {**stop["init_args"], **odd}}
        write_config(here / "tiny.yaml", config(PROBE, callbacks=[other]))
        assert "trainer.callbacks has" in told(here, rows)["why"]
    write_config(here / "tiny.yaml", config(PROBE, callbacks=other))
    assert "trainer.callbacks has" in told(here, rows)["why"]


def test_a_search_trains_them_together_and_the_rest_one_by_one_and_says_why(
    here: Path, capfd: Capture
) -> None:
    write_config(here / "tiny.yaml", config(PROBE, max_epochs=2))
    for name, adapter in (("probe", PROBE), ("bitfit", ("kora.adapters.BitFit", {}))):
        part = {"class_path": adapter[0], "init_args": adapter[1]}
        write_config(here / f"{name}.yaml", {"model": {"init_args": {"adapter": part}}})
    outcome = kora(capfd, "tune", "--config", search(here, "probe", "bitfit"))
    assert outcome.code == 0, outcome.err
    assert "probe: trials 0 to 2 together, if possible." in outcome.out
    assert "bitfit: its trials train one by one: BitFit changes what the" in outcome.out
    record = json.loads((here / "runs/tune_search/record.json").read_text())
    assert [len(one["trials"]) for one in record["combinations"]] == [3, 3]
    assert not list(here.glob("runs/tiny_tune/MultiLayerProbe"))
    assert len(list(here.glob("runs/tiny_tune/BitFit/seed*/version_*"))) == 6
    more = kora(capfd, "tune", "--config", search(here, "probe", "bitfit"), "--trials", "5")
    assert more.code == 0, more.err
    assert "probe: trials 3 to 4 together, if possible." in more.out
    assert "bitfit: trials" not in more.out, "each is drawn after the results of the others"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (["--trainer.gradient_clip_val=1"], r"trainer.gradient_clip_val is 1"),
        (
            ["--model.adapter_trainable=false", "--source=x.yaml"],
            "model.adapter_trainable is False",
        ),
        (["--model.optimizer=torch.optim.SGD"], "model.optimizer.class_path is 'torch.optim.SGD'"),
        (["--data.augment=flip"], "their features are not cached"),
        (["--model.feature_cache=off"], "their features are not cached"),
        (["--trainer.limit_train_batches=1"], "trainer.limit_train_batches is 1"),
        (["--trainer.precision=16-mixed"], "trainer.precision is '16-mixed'"),
        (["--trainer.precision=64-true"], "trainer.precision is '64-true'"),
    ],
)
def test_what_a_batched_fit_does_not_do_is_said(change: list[str], why: str, here: Path) -> None:
    write_config(here / "tiny.yaml", config(PROBE))
    found = told(here, [["--config", "tiny.yaml", *change]] * 2)
    assert why in found["why"]
    assert "scores" not in found


def test_trials_of_other_sizes_are_no_batch_and_a_dropout_is_one(here: Path) -> None:
    write_config(here / "tiny.yaml", config(SIDE))
    sizes = [["--config", "tiny.yaml", f"--model.adapter.d_comp={d}"] for d in (2, 4)]
    assert told(here, sizes)["why"] == "they differ in model.adapter.d_comp"
    shares = [
        ["--config", "tiny.yaml", f"--model.head_dropout={p}", f"--{NODES}.dropout={p}"]
        for p in (0.0, 0.9, 0.0)
    ]  # fmt: skip
    one, _, again = told(here, shares)["scores"]
    assert one == again  # what dropout does is in tests/training/test_batched_fit.py


def test_a_trial_whose_loss_is_not_finite_fails_alone(here: Path) -> None:
    write_config(here / "tiny.yaml", config(PROBE))
    rows = [["--config", "tiny.yaml", f"--model.head_lr={lr}"] for lr in ("0.01", "1e38")]
    good, bad = told(here, rows)["scores"]
    assert good > 0
    assert bad is None
