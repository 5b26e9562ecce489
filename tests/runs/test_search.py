"""Which runs are of a config."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.runs.config import with_defaults
from kora.runs.lock import RunLock
from kora.runs.search import (
    config_hash,
    find_at_work,
    find_finished_run,
    last_checkpoint,
    run_folders,
)
from tests.support.run_folders import write_run
from tests.support.stored_config import CONFIG


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, Any]:
    """CONFIG with its runs in a folder of the test."""
    return {**CONFIG, "runs_dir": str(tmp_path)}


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A config with one value changed; the path has dots."""
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return config


def unfinished(config: dict[str, Any], name: str = "version_0") -> Path:
    """A run of a config that was stopped after its first checkpoint."""
    folder = write_run(config, name)
    (folder / "results.json").unlink()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"")
    return folder


@pytest.mark.parametrize("empty", [None, [], {}])
def test_an_option_of_a_later_version_that_is_left_empty_makes_no_other_run(
    wanted: dict[str, Any], empty: Any
) -> None:
    folder = write_run(wanted)
    later = changed(wanted, "model.init_args.leave_out", empty)
    assert find_finished_run(later) == folder
    assert find_finished_run(changed(wanted, "model.init_args.leave_out", ["macro_f1"])) is None


def test_a_finished_run_of_the_same_config_is_found(wanted: dict[str, Any]) -> None:
    assert find_finished_run(wanted) is None
    folder = write_run(wanted)
    assert find_finished_run(wanted) == folder


def test_the_newest_is_taken_by_number_and_not_by_letter(wanted: dict[str, Any]) -> None:
    for number in (2, 10, 9):
        write_run(wanted, f"version_{number}")
    found = find_finished_run(wanted)
    assert found is not None
    assert found.name == "version_10"
    assert [f.name for f in run_folders(wanted)] == ["version_10", "version_9", "version_2"]


def test_the_newest_that_is_not_accepted_does_not_hide_an_older(wanted: dict[str, Any]) -> None:
    folder = write_run(wanted)
    write_run(wanted, "version_1")
    write_run(changed(wanted, "trainer.max_epochs", 1), "version_2")
    assert find_finished_run(wanted, lambda run: run.name != "version_1") == folder


@pytest.mark.parametrize(
    "record", [{"stage": "test"}, {"finished": False}, {"config_sha256": "0" * 64}]
)
def test_a_test_a_stopped_run_and_one_of_another_hash_do_not_fit(
    wanted: dict[str, Any], record: dict[str, Any]
) -> None:
    write_run(wanted, **record)
    assert find_finished_run(wanted) is None


def test_the_recorded_hash_counts_and_not_a_config_that_was_edited_later(
    wanted: dict[str, Any],
) -> None:
    folder = write_run(wanted)
    edited = changed(wanted, "data.init_args.style", "paint")
    (folder / "config.yaml").write_text(yaml.safe_dump(edited))
    assert find_finished_run(wanted) == folder
    assert find_finished_run(edited) is None


def test_a_record_from_before_the_hash_is_known_by_its_config(wanted: dict[str, Any]) -> None:
    folder = write_run(wanted, config_sha256=None)
    assert find_finished_run(wanted) == folder
    (folder / "config.yaml").unlink()
    assert find_finished_run(wanted) is None


def test_an_option_that_came_later_is_taken_at_its_default(wanted: dict[str, Any]) -> None:
    now = with_defaults(wanted)  # with all options, as a run resolves it
    earlier = copy.deepcopy(now)
    del earlier["model"]["init_args"]["head_init"]
    folder = write_run(earlier)
    assert find_finished_run(now) == folder
    assert find_finished_run(changed(now, "model.init_args.head_init", "zero")) is None
    (folder / "config.yaml").write_text(yaml.safe_dump(changed(earlier, "trainer.max_epochs", 1)))
    assert find_finished_run(changed(now, "trainer.max_epochs", 1)) is None, "edited later"
    assert find_finished_run(now) is None


def test_an_unfinished_run_of_an_earlier_version_is_gone_on_with(wanted: dict[str, Any]) -> None:
    now = with_defaults(wanted)
    earlier = copy.deepcopy(now)
    del earlier["model"]["init_args"]["head_init"]
    assert last_checkpoint(now) is None
    assert unfinished(earlier) in (last_checkpoint(now) or Path()).parents


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_results_that_cannot_be_read_are_not_finished(wanted: dict[str, Any], text: str) -> None:
    (write_run(wanted) / "results.json").write_text(text)
    assert find_finished_run(wanted) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed_everything", 4),
        ("experiment", "other"),
        ("source", None),
        ("trainer.max_epochs", 8),
        ("trainer.precision", "32-true"),
        ("model.init_args.adapter", {"class_path": "KoRA"}),
        ("model.init_args.backbone", {"name": "vit_tiny_patch16_224"}),
        ("model.init_args.head_lr", 0.2),
        ("data.init_args.style", "paint"),
    ],
)
def test_whatever_changes_the_result_makes_another_run(
    wanted: dict[str, Any], path: str, value: Any
) -> None:
    write_run(wanted)
    other = changed(wanted, path, value)
    assert config_hash(other) != config_hash(wanted)
    assert find_finished_run(other) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("trainer.accelerator", "gpu"),
        ("trainer.devices", "auto"),
        ("trainer.enable_progress_bar", True),
        ("trainer.logger", False),
        ("wandb", {"mode": "online"}),
    ],
)
def test_where_and_how_loudly_it_ran_does_not_matter(
    wanted: dict[str, Any], path: str, value: Any
) -> None:
    folder = write_run(wanted)
    assert find_finished_run(changed(wanted, path, value)) == folder
    assert config_hash({**wanted, "runs_dir": "there"}) == config_hash(wanted)


def test_a_hash_is_that_of_the_config_read_back(wanted: dict[str, Any]) -> None:
    odd = changed(wanted, "model.init_args.head_lr", 1e-05)
    odd = changed(odd, "data.init_args.limit", float("inf"))
    assert config_hash(yaml.safe_load(yaml.safe_dump(odd))) == config_hash(odd)


def test_other_names_than_version_n_are_left_alone(wanted: dict[str, Any]) -> None:
    write_run(wanted, "version_old")
    write_run(wanted, "best")
    assert find_finished_run(wanted) is None


def test_what_got_a_checkpoint_last_is_gone_on_with(wanted: dict[str, Any]) -> None:
    assert last_checkpoint(wanted) is None
    write_run(wanted)
    assert last_checkpoint(wanted) is None, "a finished run is finished"
    one, two = (unfinished(wanted, f"version_{number}") for number in (1, 2))
    os.utime(two / "checkpoints/last.ckpt", (1, 1))
    assert last_checkpoint(wanted) == one / "checkpoints/last.ckpt"
    (one / "checkpoints/last.ckpt").unlink()
    assert last_checkpoint(wanted) == two / "checkpoints/last.ckpt"
    assert last_checkpoint(changed(wanted, "data.init_args.style", "paint")) is None
    (two / "config.yaml").write_text("{")
    assert last_checkpoint(wanted) is None


def test_what_another_process_is_at_work_on_is_not_gone_on_with(wanted: dict[str, Any]) -> None:
    folder = unfinished(wanted)
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            lock = RunLock(folder)
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            lock.release()
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    try:
        assert find_at_work(wanted) == folder
        assert last_checkpoint(wanted) is None
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)
    assert find_at_work(wanted) is None
    assert last_checkpoint(wanted) == folder / "checkpoints/last.ckpt"
