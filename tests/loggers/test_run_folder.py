"""W&B never asks and never blocks, and no two runs share a folder."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import wandb
import yaml

from kora.loggers.run_folder import Wandb, claim_run_folder, make_loggers, wandb_offline
from tests.support.wandb_files import (
    KEY,
    completed,
    config_of,
    fit_command,
    in_a_terminal,
    offline_folder,
)

# -- online or offline ---------------------------------------------------------------------------


@pytest.fixture
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without credentials."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_netrc(path: Path, host: str) -> None:
    path.write_text(f"machine {host}\n  login user\n  password {KEY}\n", encoding="utf-8")
    path.chmod(0o600)


def wandb_host() -> str:
    """The server that this version of wandb talks to."""
    return urlsplit(wandb.Settings().base_url).netloc


def test_offline_without_credentials(no_login: Path) -> None:
    assert wandb_offline("auto")


@pytest.mark.parametrize(("mode", "offline"), [("online", False), ("offline", True)])
def test_a_mode_that_was_asked_for_wins(
    no_login: Path, monkeypatch: pytest.MonkeyPatch, mode: str, offline: bool
) -> None:
    for variable in ("online", "offline"):
        monkeypatch.setenv("WANDB_MODE", variable)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        assert wandb_offline(mode) == offline


@pytest.mark.parametrize(
    ("variable", "offline"), [("online", False), ("offline", True), ("dryrun", True)]
)
def test_wandb_mode_decides_for_auto_also_with_a_key(
    no_login: Path, monkeypatch: pytest.MonkeyPatch, variable: str, offline: bool
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", variable)
    assert wandb_offline("auto") == offline


def test_a_login_as_wandb_writes_it_counts(no_login: Path) -> None:
    code = f"import wandb; wandb.login(key='{KEY}', verify=False)"
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, timeout=60,
        env={**os.environ, "WANDB_X_DISABLE_VIEWER": "true"},  # or it asks the server, and waits
    )  # fmt: skip
    assert (no_login / ".netrc").is_file()
    assert not wandb_offline("auto")


def test_netrc_in_the_place_that_netrc_names_is_read(
    no_login: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = no_login / "elsewhere"
    write_netrc(elsewhere, wandb_host())
    monkeypatch.setenv("NETRC", str(elsewhere))
    assert not wandb_offline("auto")


def test_a_login_at_another_host_does_not_count(no_login: Path) -> None:
    write_netrc(no_login / ".netrc", "example.org")
    assert wandb_offline("auto")


def test_a_broken_netrc_is_no_login(no_login: Path) -> None:
    (no_login / ".netrc").write_text("machine\n", encoding="utf-8")
    assert wandb_offline("auto")


def test_an_option_wins_over_the_environment_and_that_names_the_project(
    no_login: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loggers(**options: Any) -> list[Any]:
        names = {"experiment": "e", "strategy": "LoRA", "seed": 0, "stage": "fit"}
        return make_loggers(no_login / "version_0", Wandb(**options), **names)

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert len(loggers()) == 1
    assert loggers(mode="offline")[1]._project == "mine"
    assert loggers(mode="offline", project="yours")[1]._project == "yours"
    monkeypatch.delenv("WANDB_PROJECT")
    assert loggers(mode="offline")[1]._project == "kora"


# -- the folder of a run -------------------------------------------------------------------------


def test_folders_are_numbered_from_zero_and_go_on_behind_the_last(tmp_path: Path) -> None:
    parent = tmp_path / "runs/a/LoRA/seed0"
    assert claim_run_folder(parent) == parent / "version_0"
    (parent / "version_7").mkdir()
    (parent / "version_x").mkdir()
    assert claim_run_folder(parent) == parent / "version_8"


@pytest.mark.slow
def test_two_processes_never_get_one_folder(tmp_path: Path) -> None:
    def claim(number: int) -> None:
        (tmp_path / f"ready{number}").touch()
        while not (tmp_path / "go").exists():
            pass
        claimed = [claim_run_folder(tmp_path / "runs").name for _ in range(100)]
        (tmp_path / f"names{number}").write_text(" ".join(claimed))

    both = [multiprocessing.get_context("fork").Process(target=claim, args=(n,)) for n in range(2)]
    for process in both:
        process.start()
    while len(list(tmp_path.glob("ready*"))) < 2:
        time.sleep(0.01)
    (tmp_path / "go").touch()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    names = [(tmp_path / f"names{number}").read_text().split() for number in range(2)]
    assert all(len(mine) == 100 for mine in names)
    assert Counter(name for mine in names for name in mine) == Counter(
        f"version_{i}" for i in range(200)
    )


# -- real runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run without login and without terminal, and what it printed."""
    folder = tmp_path_factory.mktemp("offline")
    command, environment = fit_command(folder)
    done = completed(command, folder, environment)
    assert done.returncode == 0, done.stdout
    return folder, done.stdout


def wandb_folder(folder: Path) -> Path:
    return offline_folder(folder / "runs/tiny/LoRA/seed0/version_0")


@pytest.mark.slow
def test_who_does_not_use_wandb_is_told_nothing_of_it(offline: tuple[Path, str]) -> None:
    _, out = offline
    assert "W&B" not in out
    assert "wandb" not in out


@pytest.mark.slow
def test_offline_as_asked_a_run_ends_with_how_to_upload_it(tmp_path: Path) -> None:
    command, environment = fit_command(tmp_path)
    done = completed(command, tmp_path, environment | {"WANDB_MODE": "offline"})
    last = done.stdout.rstrip().splitlines()[-1]
    assert "offline; to upload: wandb sync runs/tiny/LoRA/seed0/version_0/wandb/offline-run" in last
    assert (tmp_path / last.rpartition("wandb sync ")[2]).is_dir()


@pytest.mark.slow
def test_all_that_wandb_writes_lies_in_the_run_folder(offline: tuple[Path, str]) -> None:
    folder, _ = offline
    visible = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert visible == {"tiny.yaml", "runs"}
    assert {path.name for path in (folder / "runs").rglob("wandb")} == {"wandb"}
    assert list(wandb_folder(folder).glob("*.wandb"))


@pytest.mark.slow
def test_wandb_holds_the_whole_resolved_config(offline: tuple[Path, str]) -> None:
    folder, _ = offline
    saved = yaml.safe_load((folder / "runs/tiny/LoRA/seed0/version_0/config.yaml").read_text())
    recorded = config_of(wandb_folder(folder))
    assert saved.items() <= recorded.items()
    assert recorded["model"]["init_args"]["adapter"]["init_args"]["rank"] == 2
    assert recorded["parameters"]["trainable"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("variable", [False, True])
def test_online_without_login_is_refused_in_words_and_not_asked(
    tmp_path: Path, variable: bool
) -> None:
    command, environment = fit_command(tmp_path, *(() if variable else ("--wandb.mode", "online")))
    environment |= {"WANDB_MODE": "online"} if variable else {}
    code, out = in_a_terminal(command, tmp_path, environment)
    assert code == 2, out
    assert "wandb login" in out
    assert not list(tmp_path.rglob("results.json"))


@pytest.mark.slow
def test_a_login_without_a_network_does_not_stop_a_run(tmp_path: Path) -> None:
    command, environment = fit_command(tmp_path)
    # Port 9 of this machine refuses at once, like a machine without network.
    environment |= {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    code, out = in_a_terminal(command, tmp_path, environment)
    assert code == 0, out
    assert "offline; to upload: wandb sync" in out


@pytest.mark.slow
def test_at_a_terminal_too_nobody_is_asked(tmp_path: Path) -> None:
    command, environment = fit_command(tmp_path)
    code, out = in_a_terminal(command, tmp_path, environment)
    assert code == 0, out
    assert "Enter your choice" not in out
