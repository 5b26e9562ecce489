"""`kora grid --together`: runs that train as one batched fit are those that `kora fit` makes."""

from __future__ import annotations

import csv
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kora.adapters.folder import read_adapter_tensors
from kora.grid.together import train_list
from kora.runs.results import RunResult, find_runs, read_results
from tests.support.cli import kora, tiny_config, write_config

pytestmark = [pytest.mark.runs, pytest.mark.fits]

Capture = pytest.CaptureFixture[str]
PROBE = ("kora.adapters.MultiLayerProbe", {"cls_blocks": [-2, -1]})
SIDE = ("kora.adapters.KoRA", {"node_form": {"class_path": "PaperForm", "init_args": {
    "rank": 2, "inject": False, "dropout": 0.0}}, "d_comp": 4})  # fmt: skip
STOP = {"class_path": "EarlyStopping", "init_args": {
    "monitor": "val/accuracy", "mode": "max", "patience": 2}}  # fmt: skip


def grid(folder: Path, adapter: tuple[str, dict[str, Any]], **more: Any) -> str:
    made = tiny_config()
    options = made["model"]["init_args"]
    options["adapter"] = {"class_path": adapter[0], "init_args": adapter[1]}
    options["optimizer"] = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}}
    made["trainer"] |= {"max_epochs": 6, "callbacks": [STOP]}
    write_config(folder / "tiny.yaml", made)
    (folder / "g.yaml").write_text(yaml.safe_dump({
        "base": "tiny.yaml", "vary": {"model.head_lr": [0.03, 0.001]}, "seeds": [4, 5], **more,
    }))  # fmt: skip
    return "g.yaml"


def finished(folder: Path) -> dict[tuple[Any, ...], tuple[Path, RunResult]]:
    runs = {}
    for run in find_runs([folder]):
        result = read_results(run)
        runs[result.seed, result.settings["training"]["head_lr"]] = (run, result)
    return runs


def curve(folder: Path, name: str) -> list[tuple[str, str, float]]:
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row.get(name)]
    return [(row["epoch"], row["step"], float(row[name])) for row in rows]


@pytest.mark.parametrize("adapter", [PROBE, SIDE], ids=["MultiLayerProbe", "KoRA-side"])
def test_each_run_is_the_one_that_trains_alone(adapter: Any, here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "grid", "--config", grid(here, adapter), "--together")
    assert outcome.code == 0, outcome.err
    assert "together, if possible: 4 runs" in outcome.out
    assert "4 runs done, 0 were finished before, 0 failed" in outcome.out
    again = kora(capfd, "grid", "--config", "g.yaml", "--together")
    assert "4 of them finished" in again.out
    shutil.move(here / "runs", here / "together")
    assert kora(capfd, "grid", "--config", "g.yaml").code == 0
    mine, alone = finished(here / "together"), finished(here / "runs")
    assert len(mine) == 4
    assert mine.keys() == alone.keys()
    ends = set()
    for key, (folder, result) in alone.items():
        other, found = mine[key]
        for name, value in result.metrics.items():
            assert found.metrics[name] == pytest.approx(value, abs=1e-5), name
        assert found.metrics.keys() == result.metrics.keys()
        assert found.tested_step == result.tested_step
        assert found.protocol == result.protocol
        assert found.config_sha256 == result.config_sha256
        assert (found.together, found.peak_memory_mib) == (4, None)
        assert "fit" not in found.seconds
        assert result.together is None
        theirs = read_adapter_tensors(folder / "adapter")
        for name, tensor in read_adapter_tensors(other / "adapter").items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5)
        for name in ("val/loss", "val/accuracy", "test/loss"):
            rows = curve(folder, name)
            assert [row[:2] for row in curve(other, name)] == [row[:2] for row in rows]
            values = [value for *_, value in rows]
            assert [value for *_, value in curve(other, name)] == pytest.approx(values, abs=1e-5)
        ends.add(len(curve(folder, "val/loss")))
        there = {path.name for path in folder.iterdir()} - {"checkpoints", "node_gradients.json"}
        assert {path.name for path in other.iterdir()} == there
    assert min(ends) < 6, "they stop early"
    assert len({str(result.metrics) for _, result in mine.values()}) == 4


def test_what_cannot_train_together_trains_alone_and_is_told(here: Path, capfd: Capture) -> None:
    name = grid(here, PROBE, vary={"model.adapter": ["kora.adapters.BitFit"]})
    outcome = kora(capfd, "grid", "--config", name, "--together")
    assert outcome.code == 0, outcome.err
    assert "one by one: 2 runs, adapter=" in outcome.out
    assert "BitFit changes what the" in outcome.out
    runs = [result for _, result in finished(here / "runs").values()]
    assert [one.together for one in runs] == [None, None]
    assert len(list((here / "runs").rglob("version_*"))) == 2, "nothing is left of the attempt"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (["--model.head_dropout=0.5"], "model.head_dropout is 0.5, which draws other numbers"),
        (["--model.feature_cache=off"], "their features are not cached"),
        (["--trainer.enable_checkpointing=false"], "trainer.enable_checkpointing is False"),
        (["--trainer.check_val_every_n_epoch=9"], "no epoch validates"),
    ],
)
def test_what_a_batched_fit_does_not_do_is_said(change: list[str], why: str, here: Path) -> None:
    grid(here, PROBE)
    rows = [["--config", "tiny.yaml", *change, f"--seed_everything={seed}"] for seed in (1, 2)]
    path = here / "list.json"
    path.write_text(json.dumps({"runs": rows}))
    train_list(path)
    assert why in json.loads((here / "list.ended.json").read_text())["why"]
    assert not list(here.rglob("version_*"))


def test_a_signal_ends_a_batched_fit_at_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def ended(*args: Any, **options: Any) -> None:
        found.append(signal.getsignal(signal.SIGTERM))
        raise ValueError("seen")

    monkeypatch.setattr("kora.grid.together.fit_together", ended)
    grid(here, PROBE)
    rows = [["--config", "tiny.yaml", f"--seed_everything={seed}"] for seed in (1, 2)]
    (here / "list.json").write_text(json.dumps({"runs": rows}))
    before = signal.getsignal(signal.SIGTERM)
    train_list(here / "list.json")
    assert found == [signal.SIG_DFL]
    assert signal.getsignal(signal.SIGTERM) == before


def test_fixed_numbers_that_differ_are_refused(here: Path, capfd: Capture) -> None:
    readout = {"class_path": "ClsReadout", "init_args": {"init": "default", "trainable": False}}
    name = grid(here, (SIDE[0], {**SIDE[1], "readout": readout}))
    outcome = kora(capfd, "grid", "--config", name, "--together", "--only", "head_lr=0.03")
    assert outcome.code == 0, outcome.err
    assert "is fixed and random, and each run has its own" in outcome.out


def test_a_run_that_is_not_finite_fails_alone(here: Path, capfd: Capture) -> None:
    name = grid(here, PROBE, vary={"model.head_lr": [0.03, 1e38]}, seeds=[4])
    outcome = kora(capfd, "grid", "--config", name, "--together")
    assert outcome.code == 1
    assert "1 of 2 runs failed" in outcome.err
    (found,) = finished(here / "runs").values()
    assert found[1].together == 2


def test_it_is_for_this_machine(here: Path, capfd: Capture) -> None:
    name = grid(here, PROBE)
    outcome = kora(capfd, "grid", "--config", name, "--together", "--launcher", "slurm")
    assert outcome.code == 2
    assert "--together is for this machine alone" in outcome.err
