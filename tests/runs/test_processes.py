"""A command of kora in a process of its own, new or a fork of the one that is kept."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kora.runs.processes import Stop, run_child
from tests.support.cli import here, tiny_config, write_config
from tests.support.grids import LONG, gone, parent_of, runs_of_kora
from tests.support.wandb_files import completed, fit_command

__all__ = ["gone", "here"]

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is kept")
both = pytest.mark.parametrize("kept", [False, pytest.param(True, marks=LINUX)])


def child(
    *args: str, log: Path, kept: bool = True, env: dict[str, str] | None = None
) -> tuple[int, str]:
    with log.open("wb") as output:
        code = run_child(args, stop=Stop(), env=env, output=output, more_follow=kept)
    return code, log.read_text()


@both
def test_the_exit_code_and_what_is_printed_are_those_of_the_command(here: Path, kept: bool) -> None:
    log = here / "log"
    assert child("--version", log=log, kept=kept)[0] == 0
    assert log.read_text().startswith("kora ")
    code, said = child("compare", "none", log=log, kept=kept)
    assert code == 2
    assert "none: no such folder" in said
    assert "Traceback" not in said


@both
def test_the_environment_is_the_given_one_and_the_folder_that_of_now(
    here: Path, kept: bool
) -> None:
    config = tiny_config()
    config["trainer"]["callbacks"] = [{"class_path": "tests.support.slowly.Threads"}]
    write_config(here / "tiny.yaml", config)
    env = {**os.environ, "OMP_NUM_THREADS": "2", "KORA_DEBUG": "1"}
    code, said = child("fit", "--config", "tiny.yaml", log=here / "log", kept=kept, env=env)
    assert code == 0, said
    assert "threads: 2" in said
    # A loader's process that began as this one has would import torch again, in seconds.
    assert f"loaders: {multiprocessing.get_start_method()}\n" in said
    assert list(here.glob("runs/tiny/LoRA/seed0/version_0/results.json"))
    assert "KORA_DEBUG" not in os.environ


@LINUX
def test_each_fork_logs_pictures_to_wandb(here: Path) -> None:
    """W&B keeps them in a folder that it makes at its import, and takes away at the end."""
    command, environment = fit_command(here, "--wandb.mode", "offline")
    for _ in range(2):
        done = completed(command, here, environment)
        assert done.returncode == 0, done.stdout
        assert "offline; to upload: wandb sync" in done.stdout
        assert "not everything could be logged" not in done.stdout


@LINUX
def test_forks_have_a_session_of_their_own_and_one_parent_that_is_kept(
    here: Path, gone: None
) -> None:
    with running(here) as one:
        parent = parent_of(one)
        assert os.getsid(one) == one
        assert Path(f"/proc/{one}/comm").read_text() == "kora fit\n"
    assert parent != os.getpid()
    with running(here) as other:
        assert parent_of(other) == parent
        assert Path(f"/proc/{parent}/cwd").readlink() == Path("/"), "its first folder may go"


@LINUX
def test_ctrl_c_while_forks_are_prepared_is_no_traceback(here: Path) -> None:
    code = """
import os, signal, time, kora.runs.processes as processes
signal.signal(signal.SIGINT, signal.default_int_handler)  # which nohup would have ignored
try:
    processes.start_server()
    time.sleep(0.5)
    os.killpg(0, signal.SIGINT)
    time.sleep(9)
except KeyboardInterrupt:
    print("one line")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=here, capture_output=True, text=True, start_new_session=True,
    )  # fmt: skip
    assert done.stdout == "one line\n"
    assert done.stderr == ""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[int]:
    """A run that goes on for long; killed at the end."""
    options = [f"--{key}={json.dumps(value)}" for key, value in LONG.items()]
    args, log = ("fit", "--config", "tiny.yaml", *options), folder / "log"
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(child(*args, log=log)[0]))
    thread.start()
    while not (found := runs_of_kora(folder)):
        assert thread.is_alive(), log.read_text()
        time.sleep(0.05)
    try:
        yield found[0]
    finally:
        os.kill(found[0], signal.SIGKILL)
        thread.join()
    assert codes == [-signal.SIGKILL]
