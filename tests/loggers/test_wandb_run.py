"""W&B never stops a run: a silent server, one run over a resume, and a killed run's log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.loggers.run_folder import claim_run_folder
from kora.loggers.wandb_run import keep_run_id, wandb_run_id
from tests.support.cli import started, tiny_config, write_config
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
def test_a_killed_run_has_lost_at_most_the_row_of_the_step_that_it_was_in(tmp_path: Path) -> None:
    config = tiny_config()
    config["trainer"] |= {
        "max_epochs": 10_000,
        "log_every_n_steps": 1,
        "callbacks": [{"class_path": "tests.support.slowly.Note"}],
    }
    write_config(tmp_path / "tiny.yaml", config)
    noted, end = tmp_path / "steps.txt", time.monotonic() + 200
    log = tmp_path / "log"
    with started("fit", "--config", "tiny.yaml", log=log, folder=tmp_path) as process:
        while not noted.is_file() or noted.read_text().count("\n") < 7:  # three epochs
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
    done = int(noted.read_text().split()[-1])
    rows = (tmp_path / RUN / "metrics.csv").read_text(encoding="utf-8").splitlines()
    header = rows[0].split(",")
    table = [dict(zip(header, row.split(","), strict=True)) for row in rows[1:]]
    steps = [int(row["step"]) for row in table if row["train/loss"]]
    assert steps == list(range(len(steps)))  # counted from 0
    assert len(steps) >= done - 1
    assert [row for row in table if row["val/accuracy"]]  # a column that came later
    assert yaml.safe_load((tmp_path / RUN / "config.yaml").read_text())
