"""AdapterFusion on the command line: two source runs, their fusion, and what it leaves behind."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.cli.support import kora, results, tiny_config, write_config

Capture = pytest.CaptureFixture[str]
STYLES = ("paint", "studio")
RUN = Path("runs/tiny/AdapterFusion/seed0/version_0")
TABLE = "fusion_attention.csv"


def source(style: str) -> str:
    return f"runs/{style}/Bottleneck/seed0/version_0/adapter"


@pytest.fixture
def fused(here: Path, capfd: Capture) -> Path:
    """Two source runs in two styles; fusion.yaml names their adapters."""
    for style in STYLES:
        config = with_adapter("Bottleneck", rank=2)
        config["experiment"], config["data"]["init_args"]["style"] = style, style
        outcome = kora(capfd, "fit", "--config", write_config(here / f"{style}.yaml", config))
        assert outcome.code == 0, outcome.err
    sources = [source(style) for style in STYLES]
    return write_config(here / "fusion.yaml", with_adapter("AdapterFusion", sources=sources))


def with_adapter(name: str, **arguments: Any) -> dict[str, Any]:
    config = tiny_config()
    adapter = {"class_path": f"kora.adapters.{name}", "init_args": arguments}
    config["model"]["init_args"]["adapter"] = adapter
    return config


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_two_sources_are_fused_and_the_run_shows_what_it_attends_to(
    fused: Path, capfd: Capture
) -> None:
    outcome = kora(capfd, "fit", "--config", fused, "--trainer.log_every_n_steps", "1")
    assert outcome.code == 0, outcome.err
    assert "fusion_attention.png" in outcome.out
    assert (RUN / "fusion_attention.png").is_file()
    rows = table(RUN)
    assert [(row["block"], row["place"]) for row in rows] == [(str(i), "mlp") for i in range(6)]
    for row in rows:
        shares = [float(row[f"{style}/Bottleneck"]) for style in STYLES]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert min(shares) > 0
    record = results(RUN)
    assert record["parameters"]["trainable"] == 6 * (3 * 128**2 + 2 * 128) + 12 * 129
    logged = (RUN / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "train/penalty" in logged
    kept = load_file(RUN / "adapter/adapter_model.safetensors")
    for number, style in enumerate(STYLES):
        theirs = load_file(f"{source(style)}/adapter_model.safetensors")
        for key, tensor in theirs.items():
            if key.startswith("adapter."):
                place, name = key.removeprefix("adapter.adapters.").split(".", 1)
                mine = kept[f"adapter.places.{place}.adapters.{number}.{name}"]
                assert (mine == tensor).all()  # frozen: as the source run left it


def test_a_test_and_a_validation_of_it_write_the_table_too(fused: Path, capfd: Capture) -> None:
    assert kora(capfd, "fit", "--config", fused).code == 0
    for number, command in enumerate(("test", "validate"), start=1):
        outcome = kora(
            capfd, command, "--config", RUN / "config.yaml",
            "--ckpt_path", RUN / "checkpoints/best.ckpt",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        again = RUN.with_name(f"version_{number}")
        assert (table(again) == table(RUN)) == (command == "test")
        assert [row["place"] for row in table(again)] == ["mlp"] * 6


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([source("paint")], "over a single adapter the softmax is always 1"),
        ([source("paint"), "runs/nothing/adapter"], "runs/nothing/adapter is no adapter folder"),
    ],
)
def test_sources_that_are_not_there_are_one_clear_error(
    sources: list[str], message: str, fused: Path, capfd: Capture
) -> None:
    config = write_config(fused, with_adapter("AdapterFusion", sources=sources))
    outcome = kora(capfd, "fit", "--config", config)
    assert outcome.code in (1, 2)
    assert message in outcome.err
    assert not RUN.exists()


def test_a_damaged_source_is_a_failure_that_names_the_file(fused: Path, capfd: Capture) -> None:
    path = Path(source("studio")) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:300])
    outcome = kora(capfd, "fit", "--config", fused)
    assert outcome.code in (1, 2)
    assert str(path) in outcome.err
    assert not RUN.exists()


def test_a_checkpoint_is_tested_with_its_sources_moved(fused: Path, capfd: Capture) -> None:
    assert kora(capfd, "fit", "--config", fused).code == 0
    for style in STYLES:
        shutil.move(source(style), style)
    outcome = kora(
        capfd, "test", "--config", RUN / "config.yaml",
        "--ckpt_path", RUN / "checkpoints/best.ckpt",
        "--model.adapter.init_args.sources", "[paint, studio]",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert results(RUN.with_name("version_1"))["metrics"]["test/accuracy"] == pytest.approx(
        results(RUN)["metrics"]["test/accuracy"]
    )


@pytest.mark.parametrize("command", ["test", "predict"])
def test_a_checkpoint_needs_no_source_folders(command: str, fused: Path, capfd: Capture) -> None:
    assert kora(capfd, "fit", "--config", fused).code == 0
    for style in STYLES:
        shutil.rmtree(f"runs/{style}")
    checkpoint = ("--ckpt_path", RUN / "checkpoints/best.ckpt")
    with pytest.warns(UserWarning, match=f"{source('studio')} is gone"):
        outcome = kora(capfd, command, "--config", RUN / "config.yaml", *checkpoint)
    assert outcome.code == 0, outcome.err
    if command == "test":
        again = RUN.with_name("version_1")
        assert table(again) == table(RUN)
        assert results(again)["metrics"]["test/accuracy"] == pytest.approx(
            results(RUN)["metrics"]["test/accuracy"]
        )


def test_training_goes_on_from_its_folder_without_its_sources(fused: Path, capfd: Capture) -> None:
    assert kora(capfd, "fit", "--config", fused).code == 0
    for style in STYLES:
        shutil.rmtree(f"runs/{style}")
    start = ("--model.adapter_from", RUN / "adapter")
    with pytest.warns(UserWarning, match=f"is taken from {RUN / 'adapter'}"):
        outcome = kora(capfd, "fit", "--config", fused, *start)
    assert outcome.code == 0, outcome.err
    assert (RUN.with_name("version_1") / TABLE).is_file()
    shutil.rmtree(RUN / "adapter")
    outcome = kora(capfd, "fit", "--config", fused)
    assert outcome.code == 1
    assert f"{source('paint')}, {source('studio')} are no adapter folders" in outcome.err
