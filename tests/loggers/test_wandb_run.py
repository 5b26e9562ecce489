"""W&B never stops a run: servers that are gone, silent, or fall silent; one run over a resume."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.loggers.run_folder import claim_run_folder
from kora.loggers.wandb_run import FINISH_S, keep_run_id, wandb_run_id
from tests.support.cli import tiny_config, write_config
from tests.support.wandb_files import KEY, completed, fit_command, in_a_terminal
from tests.support.wandb_servers import always, serving

RUN = Path("runs/tiny/LoRA/seed0/version_0")


@pytest.fixture
def server() -> Iterator[Any]:
    with serving() as it:
        yield it


# -- the id of a run -----------------------------------------------------------------------------


def test_the_id_is_found_from_the_run_folder_and_from_its_checkpoints(tmp_path: Path) -> None:
    folder = claim_run_folder(tmp_path / "seed0")
    assert wandb_run_id(folder) is None
    keep_run_id(folder, "abc123")
    for place in (folder, folder / "checkpoints", folder / "checkpoints/last.ckpt"):
        assert wandb_run_id(place) == "abc123"
    assert wandb_run_id(claim_run_folder(tmp_path / "seed0")) is None
    (folder / "wandb_run.json").write_text("{", encoding="utf-8")
    assert wandb_run_id(folder) is None


# -- real runs -----------------------------------------------------------------------------------


def online(folder: Path, server: Any, *args: str) -> tuple[list[str], dict[str, str]]:
    command, environment = fit_command(folder, *args)
    return command, environment | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.url}


@pytest.mark.slow
def test_a_silent_server_delays_a_run_by_less_than_ten_seconds_and_nobody_is_asked(
    tmp_path: Path, server: Any
) -> None:
    server.fails = always
    command, environment = online(tmp_path, server)
    code, out = in_a_terminal(command, tmp_path, environment)
    assert code == 0, out
    assert f"W&B at {server.url} does not answer: this run is logged offline" in out
    assert "offline; to upload: wandb sync" in out
    assert "Enter your choice" not in out
    assert server.asked == ["Viewer"]  # one look of four seconds, and never again


@pytest.mark.slow
def test_a_server_lost_in_mid_run_stops_nothing_and_the_end_is_bounded(
    tmp_path: Path, server: Any
) -> None:
    server.fails = lambda server: any("file_stream" in asked for asked in server.asked)
    command, environment = online(tmp_path, server)
    started = time.monotonic()
    done = completed(command, tmp_path, environment)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stdout
    assert (tmp_path / RUN / "results.json").is_file()
    said = [line for line in done.stdout.splitlines() if line.startswith("W&B: ")]
    assert len(said) == 1
    assert "panels and the adapter are left out" in said[0]
    assert "stopped answering, and not everything was uploaded" in said[0]
    assert (tmp_path / said[0].rpartition("wandb sync ")[2]).is_dir()
    finished = (tmp_path / RUN / "results.json").stat().st_mtime
    assert time.time() - finished < 60
    assert seconds > FINISH_S  # it did wait for the server, and then stopped waiting


@pytest.mark.slow
def test_a_server_that_falls_silent_while_the_adapter_is_logged_holds_up_the_end_by_a_minute(
    tmp_path: Path, server: Any
) -> None:
    server.fails = lambda server: "CreateArtifact" in server.asked
    command, environment = online(tmp_path, server)
    done = completed(command, tmp_path, environment)
    ended = time.time()
    assert done.returncode == 0, done.stdout
    assert ended - (tmp_path / RUN / "results.json").stat().st_mtime < 60
    said = [line for line in done.stdout.splitlines() if line.startswith("W&B: ")]
    assert len(said) == 1
    # Whichever request meets the silence first.
    assert any(word in said[0] for word in ("were not all logged within", "stopped answering"))
    assert "not everything was uploaded; for the rest: wandb sync" in said[0]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path: Path, server: Any) -> None:
    for more in ((), ("--trainer.max_epochs", "2", "--ckpt_path", f"{RUN}/checkpoints/last.ckpt")):
        command, environment = online(tmp_path, server, *more)
        done = completed(command, tmp_path, environment)
        assert done.returncode == 0, done.stdout
        assert "W&B:" not in done.stdout  # all is uploaded
    models = [it for it in server.artifacts if it["artifactTypeName"] == "model"]
    assert [it["artifactCollectionName"] for it in models] == ["tiny-LoRA-seed0"] * 2
    first = wandb_run_id(tmp_path / RUN)
    assert first is not None
    assert set(server.ids) == {first}
    assert wandb_run_id(tmp_path / RUN.with_name("version_1")) == first


@pytest.mark.slow
def test_the_death_of_the_process_of_wandb_stops_no_run(tmp_path: Path, server: Any) -> None:
    server.damaged = True  # an answer at which wandb-core 0.31 panics
    command, environment = online(tmp_path, server)
    done = completed(command, tmp_path, environment)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / RUN / "results.json").is_file()
    assert "stopped working" in done.stdout
    assert "wandb sync" in done.stdout
    assert "goroutine" not in done.stderr  # what Go prints of it, page upon page
    assert "Traceback" not in done.stderr


NOTE = """
import os
from lightning.pytorch.callbacks import Callback


class Note(Callback):
    \"\"\"Notes each step outside of any logger, at once.\"\"\"

    def on_train_batch_end(self, trainer, *args):
        with open("steps.txt", "a") as file:
            file.write(f"{trainer.global_step}\\n")
"""


@pytest.mark.slow
def test_a_killed_run_has_lost_at_most_the_row_of_the_step_that_it_was_in(tmp_path: Path) -> None:
    (tmp_path / "note.py").write_text(NOTE, encoding="utf-8")
    config = tiny_config()
    config["trainer"] |= {
        "max_epochs": 10_000,
        "log_every_n_steps": 1,
        "callbacks": [{"class_path": "note.Note"}],
    }
    write_config(tmp_path / "tiny.yaml", config)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, "-m", "kora", "fit", "--config", "tiny.yaml"], cwd=tmp_path,
        env={**os.environ, "WANDB_MODE": "disabled", "PYTHONPATH": path},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    noted, end = tmp_path / "steps.txt", time.monotonic() + 200
    try:
        while not noted.is_file() or noted.read_text().count("\n") < 7:  # three epochs
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    done = int(noted.read_text().split()[-1])
    rows = (tmp_path / RUN / "metrics.csv").read_text(encoding="utf-8").splitlines()
    header = rows[0].split(",")
    table = [dict(zip(header, row.split(","), strict=True)) for row in rows[1:]]
    steps = [int(row["step"]) for row in table if row["train/loss"]]
    assert steps == list(range(len(steps)))  # counted from 0
    assert len(steps) >= done - 1
    assert [row for row in table if row["val/accuracy"]]  # a column that came later
    assert yaml.safe_load((tmp_path / RUN / "config.yaml").read_text())
