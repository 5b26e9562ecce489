"""`kora data cache` fills what `kora fit` then reads, and the record of a run says so."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.runs.results import read_results
from kora.runs.search import config_hash, find_finished_run
from tests.support.armed import ARMED
from tests.support.cli import kora, results, started, tiny_config, write_config
from tests.support.kept_tables import rows_done

pytestmark = pytest.mark.runs

Capture = pytest.CaptureFixture[str]
SEED0 = Path("runs/tiny/KoRA-side/seed0")
FORM = {"class_path": "kora.adapters.PaperForm", "init_args": {"rank": 2, "inject": False}}
SIDE = {"class_path": "kora.adapters.KoRA", "init_args": {"node_form": FORM}}


@pytest.fixture
def side(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """KoRA as a side network, two epochs of two steps; its cache lies in `cache`."""
    monkeypatch.setenv("KORA_CACHE", str(here / "cache"))
    config = tiny_config()
    config["model"]["init_args"]["adapter"] = SIDE
    config["trainer"] |= {"max_epochs": 2, "log_every_n_steps": 1}
    return write_config(here / "side.yaml", config)


def metrics(run: Path) -> dict[str, float]:
    return dict(results(run)["metrics"])


def test_it_fills_both_splits_and_a_fit_computes_only_its_test(side: Path, capfd: Capture) -> None:
    told = kora(capfd, "data", "cache", "--config", side, "--data.batch_size", "9")
    assert told.code == 0, told.err
    assert "feature cache, train: 36 images x 21.5 KiB = 774 KiB in " in told.out
    assert "feature cache, val: 12 images x 21.5 KiB = 258 KiB in " in told.out
    assert told.out.count(": filled in ") == 2
    assert f"48 images were computed; the cache is in {side.parent / 'cache/features'}." in (
        told.out
    )
    assert not Path("runs").exists(), "it is no run"
    again = kora(capfd, "data", "cache", "--config", side)
    assert "0 images were computed" in again.out
    assert kora(capfd, "fit", "--config", side).code == 0
    record = results(SEED0 / "version_0")
    assert record["feature_cache"] == {
        "dtype": "float32",
        "splits": ["train", "val", "test"],
        "bytes_an_image": 22016,
        "images_computed": 24,  # of the test
        "seconds": record["seconds"]["feature_cache"],
    }


@pytest.mark.parametrize("least", ["min_epochs", "min_steps"])
def test_it_makes_no_step_where_a_fit_makes_some_at_least(
    least: str, side: Path, capfd: Capture
) -> None:
    told = kora(capfd, "data", "cache", "--config", side, f"--trainer.{least}", "2")
    assert (told.code, told.err) == (0, "")


def test_runs_with_and_without_it_are_runs_of_one_config_with_one_result(
    side: Path, capfd: Capture
) -> None:
    told = kora(capfd, "fit", "--config", side)
    assert told.code == 0, told.err
    assert "feature_cache" in told.out
    assert kora(capfd, "fit", "--config", side, "--model.feature_cache", "off").code == 0
    kept, images = SEED0 / "version_0", SEED0 / "version_1"
    assert metrics(kept) == pytest.approx(metrics(images), abs=1e-4)
    assert results(kept)["feature_cache"]["images_computed"] == 48 + 24
    assert results(images)["feature_cache"] is None
    assert results(kept)["seconds"]["feature_cache"] > 0, "the clock of the fit leaves it out"
    assert "feature_cache" not in results(images)["seconds"]
    assert results(kept)["settings"] == results(images)["settings"], "comparable"
    config = yaml.safe_load((images / "config.yaml").read_text())
    assert config["model"]["init_args"]["feature_cache"] is False
    assert find_finished_run(config) == images
    assert read_results(kept).config_sha256 == config_hash(config)
    compared = kora(capfd, "compare", "runs/tiny")
    assert compared.code == 0, compared.err


def test_a_rounding_cache_is_another_config_and_stands_in_the_settings(
    side: Path, capfd: Capture
) -> None:
    rounded = ("--model.feature_cache_dtype", "bfloat16")
    assert kora(capfd, "fit", "--config", side, *rounded).code == 0
    assert kora(capfd, "fit", "--config", side).code == 0
    one, two = (results(SEED0 / f"version_{number}") for number in (0, 1))
    assert one["feature_cache"]["dtype"] == "bfloat16"
    assert one["feature_cache"]["bytes_an_image"] * 2 == two["feature_cache"]["bytes_an_image"]
    assert one["settings"]["training"]["feature_cache_dtype"] == "bfloat16"
    assert one["config_sha256"] != two["config_sha256"]


def test_what_cannot_be_kept_is_one_clear_error(side: Path, capfd: Capture) -> None:
    for options, reason in (
        (["--data.augment", "flip"], "data.augment is 'flip', so each epoch brings other images"),
        (["--model.adapter", "kora.adapters.LoRA"], "LoRA changes what the backbone computes"),
    ):
        for command in (("data", "cache"), ("fit", "--model.feature_cache", "on")):
            told = kora(capfd, *command, "--config", side, *options)
            assert told.code == 2
            assert f"kora: error: A feature cache is not possible: {reason}" in told.err
            assert "Traceback" not in told.err
    assert not Path("cache").exists()


def test_a_wrong_dtype_is_one_clear_error(side: Path, capfd: Capture) -> None:
    told = kora(capfd, "fit", "--config", side, "--model.feature_cache_dtype", "float8")
    assert told.code == 2
    assert "float8" in told.err


@pytest.mark.slow
def test_a_filling_that_is_killed_goes_on_with_the_next_command(side: Path, capfd: Capture) -> None:
    slow = ("--data.train_images", "192", "--data.batch_size", "1")

    def done() -> int:
        return sum(rows_done(folder) for folder in here.glob("*") if folder.is_dir())

    here = side.parent / "cache/features"
    with started("data", "cache", "--config", side, *slow, log=side.parent / "log") as process:
        end = time.monotonic() + 240
        while done() < 20 and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        process.kill()
        process.wait()
    kept = done()
    assert 20 <= kept < 180
    told = kora(capfd, "data", "cache", "--config", side, *slow)
    assert told.code == 0, told.err
    assert f", of which {kept} images are done." in told.out
    assert done() >= 192


@pytest.mark.slow
def test_a_run_that_is_stopped_and_goes_on_reads_it_again_and_ends_to_the_bit(
    side: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: dict[str, Any] = yaml.safe_load(side.read_text())
    config["trainer"]["callbacks"] = [{"class_path": "tests.support.armed.Fault"}]
    config["data"]["init_args"]["batch_size"] = 7
    write_config(side, config)
    assert kora(capfd, "fit", "--config", side).code == 0
    monkeypatch.setenv(ARMED, "error batch_end 8")
    stopped = kora(capfd, "fit", "--config", side)
    monkeypatch.delenv(ARMED, raising=False)
    assert stopped.code != 0
    again = kora(capfd, "fit", "--config", side, "--resume", "true")
    assert again.code == 0, again.err
    whole, resumed = SEED0 / "version_0", SEED0 / "version_1"
    assert metrics(whole) == metrics(resumed)
    assert results(resumed)["feature_cache"]["images_computed"] == 0
