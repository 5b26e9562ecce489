"""Faults of disks and files end in a run that goes on, or in one line that says what to do."""

from __future__ import annotations

import errno
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from tests.support.cli import Outcome, fit_in, here, kora, started, tiny_config, write_config
from tests.support.data_factory import write_tiny_imagenet_zip
from tests.support.faults import (
    Trap,
    flip,
    forbid_locks,
    obey_modes,
    share_little,
    small_disk,
    truncate,
)
from tests.support.forks import fork_the_runs

pytestmark = pytest.mark.runs

__all__ = ["here"]

Capture = pytest.CaptureFixture[str]
RUN = Path("runs/tiny/LoRA/seed0/version_0")
LAST, BEST = RUN / "checkpoints/last.ckpt", RUN / "checkpoints/best.ckpt"
FIT = ("fit", "--config", "tiny.yaml")


class FillDisk(Callback):
    """Takes all of the disk that a folder lies on: before the second epoch, or after the test."""

    def __init__(self, folder: str, *, after_test: bool = False) -> None:
        self.folder = Path(folder)
        self.after_test = after_test

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 1 and not self.after_test:
            self._fill()

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.after_test:
            self._fill()

    def _fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(self.folder).free)


def on_a_small_disk(folder: Path, *, after_test: bool = False, **trainer: Any) -> None:
    """Write small.yaml, whose run fills the disk in folder/disk."""
    config = tiny_config(runs_dir="disk/runs")
    config["trainer"] |= trainer
    config["trainer"]["callbacks"] = {
        "class_path": "tests.training.test_faults.FillDisk",
        "init_args": {"folder": "disk", "after_test": after_test},
    }
    write_config(folder / "small.yaml", config)


def after(first: Callable[[], object], *args: str) -> Outcome:
    """`kora ARGS` in a process that did something first; its errors stand with its output."""
    log = Path("log")
    with started(*args, log=log, first=first) as process:
        return Outcome(process.wait(), "", log.read_text())


def error_of(outcome: Outcome, *, code: int = 1) -> str:
    """The one line of an error."""
    assert outcome.code == code, outcome.out + outcome.err
    assert "Traceback" not in outcome.err
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("kora: error:")]
    return line


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of two epochs."""
    folder = tmp_path_factory.mktemp("original")
    write_config(folder / "tiny.yaml", tiny_config())
    return fit_in(folder, *FIT[1:], "--trainer.max_epochs", "2")


@pytest.fixture
def trained(original: Path, here: Path) -> Path:
    """A copy of that run, in `here`."""
    shutil.copytree(original / "runs", here / "runs")
    return here / RUN


# -- what a checkpoint holds ----------------------------------------------------------------------


def test_a_checkpoint_names_backbone_source_and_hash_and_holds_the_config(trained: Path) -> None:
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    record = json.loads((trained / "results.json").read_text())
    assert content["kora"]["backbone"] == "vit_nano"
    assert content["kora"]["weights"] == "random"
    assert content["kora"]["sha256"] == record["backbone"]["sha256"]
    assert (
        content["resume"]["settings"]["config"]["model"]["init_args"]["adapter"]["init_args"][
            "rank"
        ]
        == 2
    )
    assert {"state_dict", "optimizer_states", "lr_schedulers", "loops"} <= content.keys()
    assert {key.split(".")[0] for key in content["state_dict"]} == {"adapter", "head"}
    check = ["sha256sum", "--check", "--strict", "last.ckpt.sha256", "best.ckpt.sha256"]
    subprocess.run(check, cwd=trained / "checkpoints", check=True, capture_output=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.linear.bias"), "'head.linear.bias' is missing"),
        (lambda s: s.update(surplus=torch.zeros(1)), "'surplus' is unknown here"),
        (
            lambda s: s.update({"head.linear.bia": s.pop("head.linear.bias")}),
            "'head.linear.bias' is missing; 'head.linear.bia' is unknown here",
        ),
    ],
    ids=["missing", "extra", "renamed"],
)
def test_other_keys_are_listed_with_the_file(
    change: Any, message: str, trained: Path, capfd: Capture
) -> None:
    content = torch.load(LAST, weights_only=True)
    change(content["state_dict"])
    torch.save(content, "changed.ckpt")
    for command in ("fit", "test"):
        line = error_of(
            kora(capfd, command, "--config", "tiny.yaml", "--ckpt_path", "changed.ckpt"), code=2
        )
        assert "Checkpoint changed.ckpt does not fit" in line
        assert message in line


def test_a_checkpoint_of_another_backbone_of_the_same_shape_is_refused_by_its_hash(
    trained: Path, capfd: Capture
) -> None:
    for command in ("fit", "test"):
        other = ("--config", "tiny.yaml", "--model.backbone.weights", "pretrained")
        line = error_of(kora(capfd, command, *other, "--ckpt_path", LAST), code=2)
        assert f"Checkpoint {LAST} belongs to the backbone 'vit_nano' with weights" in line


# -- damaged files --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip])
def test_training_goes_on_from_the_newest_good_checkpoint(
    damage: Any, trained: Path, capfd: Capture
) -> None:
    content = torch.load(BEST, weights_only=True)
    damage(LAST)
    outcome = kora(capfd, *FIT, "--trainer.max_epochs", "3", "--ckpt_path", LAST)
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("kora: warning:")]
    assert f"{LAST} is damaged" in line
    assert line.endswith(f"is used instead: {BEST}")
    again = torch.load(trained.with_name("version_1") / "checkpoints/last.ckpt", weights_only=True)
    assert again["epoch"] == 2
    assert again["global_step"] == content["global_step"] + 2 * (2 - content["epoch"])


def test_a_damaged_checkpoint_is_not_tested_and_no_other_is(trained: Path, capfd: Capture) -> None:
    flip(BEST)
    for command in ("test", "validate", "predict"):
        line = error_of(kora(capfd, command, "--config", "tiny.yaml", "--ckpt_path", BEST))
        assert f"{BEST} is damaged" in line
        assert "Good ones in its folder: last.ckpt." in line
    assert [path.name for path in trained.parent.iterdir()] == ["version_0"]


def test_a_payload_in_a_checkpoint_never_runs(
    trained: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    content = torch.load(LAST, weights_only=True)
    torch.save({**content, "hyper_parameters": Trap(trained / "it_ran")}, "payload.ckpt")
    for command in ("fit", "test"):
        args = ("--config", "tiny.yaml", "--ckpt_path", "payload.ckpt", "--weights_only", "false")
        line = error_of(kora(capfd, command, *args))
        assert "payload.ckpt is refused: it holds pickled objects" in line
    assert not (trained / "it_ran").exists()


def test_a_flipped_byte_in_an_adapter_is_told(trained: Path, capfd: Capture) -> None:
    flip(trained / "adapter/adapter_model.safetensors")
    line = error_of(kora(capfd, *FIT, "--model.adapter_from", RUN / "adapter"))
    assert "adapter_model.safetensors cannot be read: they are damaged" in line


def test_a_changed_byte_in_the_record_of_an_adapter_is_told(trained: Path, capfd: Capture) -> None:
    path = trained / "adapter/adapter_config.json"
    written = path.read_text()
    path.write_text(written.replace('"rank": 2', '"rank": 3'))  # JSON all the same
    line = error_of(kora(capfd, *FIT, "--model.adapter_from", RUN / "adapter"))
    assert "adapter_config.json is damaged or was edited" in line
    edited = json.loads(written.replace('"experiment": "tiny"', '"experiment": "other"'))
    del edited["record_sha256"]
    path.write_text(json.dumps(edited))
    assert kora(capfd, *FIT, "--model.adapter_from", RUN / "adapter").code == 0


def test_a_plugin_that_would_skip_the_checks_is_refused(here: Path, capfd: Capture) -> None:
    plugin = "lightning.pytorch.plugins.AsyncCheckpointIO"
    line = error_of(kora(capfd, *FIT, "--trainer.plugins", plugin), code=2)
    assert "trainer.plugins: AsyncCheckpointIO would" in line


# -- disks ----------------------------------------------------------------------------------------


def test_a_read_only_run_directory_is_found_before_training(here: Path, capfd: Capture) -> None:
    with small_disk(here / "disk", size_mib=16) as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        outcome = kora(capfd, *FIT, "--runs_dir", "disk/runs")
        line = error_of(outcome)
        assert "No run folder can be made in disk/runs/tiny/LoRA/seed0: Read-only file sys" in line
        assert "--runs_dir" in line
        assert "trainable" not in outcome.out


@pytest.mark.slow
def test_a_folder_that_its_mode_forbids_to_write_is_found_too(here: Path, capfd: Capture) -> None:
    (here / "runs").mkdir(mode=0o555)
    line = error_of(after(obey_modes, *FIT))
    assert "No run folder can be made in runs/tiny/LoRA/seed0: Permission denied" in line


@pytest.mark.parametrize(("size_mib", "words"), [(1, "1.0 MiB are needed"), (6, "too little room")])
def test_a_full_run_directory_is_found_before_training(
    size_mib: int, words: str, here: Path, capfd: Capture
) -> None:
    with small_disk(here / "disk", size_mib=size_mib) as disk:
        if size_mib == 1:
            (disk / "filler").write_bytes(bytes(900_000))
        outcome = kora(capfd, *FIT, "--runs_dir", "disk/runs")
        line = error_of(outcome)
        assert "version_0 cannot take the files of this run" in line
        assert words in line
        assert "--runs_dir" in line
        assert not list(disk.rglob("*.ckpt"))
        assert not list(disk.rglob("version_*"))  # nothing is left of a run that was not begun


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other numbers of system calls")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_prepares_caches_trains_and_searches(
    here: Path, number: int
) -> None:
    write_tiny_imagenet_zip(here / "small.zip")
    config = tiny_config()
    config["model"]["init_args"]["adapter"] = {"class_path": "kora.adapters.LinearProbe"}
    config["data"] = {
        "class_path": "datamodules.TinyImageNet",
        "init_args": {
            "root": "data", "archive": "small.zip", "classes": "0:4", "val_images": 8,
            "batch_size": 8, "num_workers": 0, "cache": True,
        },
    }  # fmt: skip
    write_config(here / "cached.yaml", config)
    rate = {"low": 1e-4, "high": 1e-2, "log": True}
    tune = {"trials": 1, "space": {"model.head_lr": rate}}
    write_config(here / "search.yaml", {"base": "cached.yaml", "tune": tune})

    def first() -> None:
        forbid_locks(number)
        fork_the_runs()

    done = after(first, "tune", "--config", "search.yaml")
    if "seccomp is not allowed here" in done.err:
        pytest.skip("seccomp is not allowed here")
    assert done.code == 0, done.err
    assert "Traceback" not in done.err
    (run,) = (here / "runs/tiny_tune/LinearProbe").rglob("results.json")
    assert json.loads(run.read_text())["metrics"]
    assert (here / "runs/tune_search/best.yaml").is_file()
    assert list((here / "data").rglob("*.cache"))


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root mounts")
@pytest.mark.parametrize(
    ("size", "what"),
    [("64k", "A loader process ended"), ("4k", "A loader process could not start")],
)
def test_a_shared_memory_that_is_too_small_for_the_loaders_is_told(
    here: Path, size: str, what: str
) -> None:
    large = ("--data.image_size", "128", "--model.feature_cache", "off")
    done = after(partial(share_little, size), *FIT, "--data.num_workers", "2", *large)
    if "namespaces are not allowed here" in done.err:
        pytest.skip("there are no namespaces here")
    lines = [line for line in done.err.splitlines() if line.startswith("kora: error: ")]
    assert done.code == 1
    assert len(lines) == 1
    assert what in lines[0]
    assert "--shm-size" in lines[0]


@pytest.mark.slow
def test_a_disk_that_fills_up_while_results_are_written_leaves_no_half_of_them(
    here: Path, capfd: Capture
) -> None:
    on_a_small_disk(here, after_test=True)  # when only the record and pictures are to be written
    with small_disk(here / "disk", size_mib=16) as disk:
        line = error_of(kora(capfd, "fit", "--config", "small.yaml"))
        assert "cannot be written: No space left on device" in line
        run = disk / "runs/tiny/LoRA/seed0/version_0"
        assert not (run / "results.json").exists()  # so that no comparison takes it as finished
        assert not list(disk.rglob(".kora-*"))
        (disk / "filler").unlink()
        again = kora(capfd, *FIT, "--ckpt_path", run / "checkpoints/last.ckpt")
        assert again.code == 0, again.err


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_the_last_checkpoint_and_says_so(
    here: Path, capfd: Capture
) -> None:
    on_a_small_disk(here, max_epochs=3, log_every_n_steps=1000)
    with small_disk(here / "disk", size_mib=16) as disk:
        line = error_of(kora(capfd, "fit", "--config", "small.yaml"))
        assert "t.ckpt cannot be written: No space left on device. The file that was there" in line
        (disk / "filler").unlink()
        last = here / "disk" / RUN / "checkpoints/last.ckpt"
        assert torch.load(last, weights_only=True)["epoch"] == 0
        again = kora(capfd, *FIT, "--ckpt_path", last, "--trainer.max_epochs", "2")
        assert again.code == 0, again.err
