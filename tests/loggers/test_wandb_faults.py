"""Whole runs beside a W&B server, or a process of W&B, that fails: each keeps everything."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kora.loggers.wandb_run import FINISH_S, PANELS_SHARE, wandb_run_id
from tests.support.cli import all_ended, tiny_config, write_config
from tests.support.wandb_files import KEY, history_of, without_login
from tests.support.wandb_reporter import NOTE
from tests.support.wandb_servers import (
    FAULTS,
    after_the_look,
    serving,
    silence,
    unfinished_tls,
)

RUN = Path("runs/tiny/LoRA/seed0/version_0")
#: Of the faults of a look (test_wandb_server.py) those that W&B's process takes in its own way.
MET_BY_THE_RUN = (
    "silence", "a body in drips", "no data", "an error", "no JSON", "200 MB", "half an answer"
)  # fmt: skip
DRIPS = ("silence", "a body in drips")
#: Seconds that an end waits for a server that does not answer: less than by default.
PATIENCE_S = 4.0
AT_THE_START = [
    *MET_BY_THE_RUN,
    "half a TLS handshake",
    "no data, then silence",
]
KILLED_AT = ("the start", "a step", "the end")
ONLINE = "no fault"


def _from_the_run_on(server: Any) -> bool:
    return "UpsertBucket" in server.asked


def _no_data_then_silence(handler: Any) -> None:
    first = handler.server.asked[-1] == "UpsertBucket"
    FAULTS["no data" if first else "silence"](handler)


def _from_the_upload_on(server: Any) -> bool:
    return any("file_stream" in asked for asked in server.asked)


def _from_the_adapter_on(server: Any) -> bool:
    return "CreateArtifact" in server.asked


@dataclass(frozen=True)
class Ended:
    """A run that has ended: its exit code, when, all that it printed, and its folder."""

    code: int
    at: float
    out: str
    folder: Path

    @property
    def said(self) -> str:
        """The last word on W&B."""
        (line,) = [line for line in self.out.splitlines() if line.startswith("W&B: ")]
        return line

    @property
    def start_s(self) -> float:
        """Seconds from the folder of the run until W&B had started, or something in its place."""
        made = (self.folder / RUN.parent).stat().st_mtime
        return float((self.folder / RUN / NOTE).read_text()) - made

    @property
    def end_s(self) -> float:
        """Seconds from its record until it ended."""
        return self.at - (self.folder / RUN / "results.json").stat().st_mtime

    def is_whole(self) -> None:
        assert self.code == 0, self.out
        for word in ("Traceback", "goroutine", "Exception ignored", "Failed to export"):
            assert word not in self.out
        for name in ("results.json", "metrics.csv", "adapter/adapter_config.json"):
            assert (self.folder / RUN / name).is_file()
        assert self.end_s < 60
        named = re.search(r"wandb sync (\S+)", self.said)
        if named:
            (file,) = (self.folder / named[1]).glob("*.wandb")
            assert file.stat().st_size > 100  # there is something to upload


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Every run of this module. They run at once, as most of them wait."""
    folders: dict[str, Path] = {}
    runs: list[tuple[list[str], dict[str, str], Path]] = []
    with ExitStack() as servers:

        def add(name: str, url: str, *args: str, kill_at: str = "never", **more: str) -> None:
            folder = folders[name] = tmp_path_factory.mktemp("run")
            config = tiny_config(runs_dir=str(folder / "runs"))
            killer = {
                "class_path": "tests.support.wandb_reporter.Reporter",
                "init_args": {"kill_at": kill_at},
            }
            config["trainer"] |= {"callbacks": [killer], "log_every_n_steps": 1}
            path = write_config(folder / "tiny.yaml", config)
            environment = without_login(folder, WANDB_API_KEY=KEY, WANDB_BASE_URL=url, **more)
            runs.append((["fit", "--config", str(path), *args], environment, folder / "out.txt"))

        def server(fault: Any = silence, fails: Any = lambda server: False, **more: Any) -> str:
            it = servers.enter_context(serving(fault))
            it.fails = fails
            vars(it).update(more)
            return str(it.url)

        add(ONLINE, server())
        add("half a TLS handshake", servers.enter_context(unfinished_tls()))
        for name in MET_BY_THE_RUN:
            fails = after_the_look if name in DRIPS else _from_the_run_on
            add(name, server(FAULTS[name], fails))
        for place in KILLED_AT:
            add(place, server(), kill_at=place)
        add("no data, then silence", server(_no_data_then_silence, _from_the_run_on))
        short = ("--wandb.finish_s", str(PATIENCE_S))
        add("a page for an upload", server(FAULTS["no JSON"], _from_the_upload_on), *short)
        add("lost", server(fails=_from_the_upload_on), *short)
        add("lost with the adapter", server(fails=_from_the_adapter_on), *short)
        add("panic", server(damaged=True))  # by an answer at which wandb-core 0.31 panics
        add("no process", server(), WANDB_SERVICE="2-1-unix-/nowhere")
        ends = all_ended(runs)
    return {
        name: Ended(code, at, (folder / "out.txt").read_text(encoding="utf-8"), folder)
        for (name, folder), (code, at) in zip(folders.items(), ends, strict=True)
    }


@pytest.mark.slow
def test_without_a_fault_all_is_uploaded(ended: dict[str, Ended]) -> None:
    run = ended[ONLINE]
    assert run.code == 0, run.out
    assert "W&B: " not in run.out


@pytest.mark.slow
@pytest.mark.parametrize("fault", AT_THE_START)
def test_a_server_that_fails_at_the_start_costs_ten_seconds_and_makes_a_run_offline(
    ended: dict[str, Ended], fault: str
) -> None:
    run = ended[fault]
    run.is_whole()
    assert "offline; to upload: wandb sync" in run.said
    (why,) = [line for line in run.out.splitlines() if "this run is logged offline" in line]
    assert why.startswith("kora: W&B")
    (folder,) = (run.folder / RUN / "wandb").glob("offline-run-*")
    assert folder.name.endswith(wandb_run_id(run.folder / RUN) or "no id")
    assert [row for row in history_of(folder) if "test/accuracy" in row]
    assert run.start_s < 10 + 2 * ended[ONLINE].start_s  # twice, as a busy machine is not even


@pytest.mark.slow
@pytest.mark.parametrize("place", KILLED_AT)
def test_the_process_of_wandb_is_killed(ended: dict[str, Ended], place: str) -> None:
    run = ended[place]
    run.is_whole()
    assert "killed" in run.out
    assert run.out.count("kora: W&B stopped working") == 1
    assert "stopped working" in run.said
    if place != "the start":
        assert "to upload what it has: wandb sync" in run.said
        (folder,) = (run.folder / RUN / "wandb").glob("run-*")
        assert [row for row in history_of(folder) if "train/loss" in row]


@pytest.mark.slow
def test_where_nothing_can_be_uploaded_at_the_end_it_is_said_how(ended: dict[str, Ended]) -> None:
    run = ended["a page for an upload"]
    run.is_whole()
    assert "panels and the adapter are left out, as the server does not answer" in run.said
    assert "for what is not uploaded: wandb sync" in run.said


@pytest.mark.slow
def test_a_server_lost_in_mid_run_stops_nothing_and_the_end_is_bounded(
    ended: dict[str, Ended],
) -> None:
    run = ended["lost"]
    run.is_whole()
    assert "panels and the adapter are left out" in run.said
    assert "stopped answering, and not everything was uploaded" in run.said
    assert (run.folder / run.said.rpartition("wandb sync ")[2]).is_dir()
    # It did wait for the server, and then stopped waiting: five seconds for a look, and the upload.
    assert PATIENCE_S < run.end_s < 2 * (5 + 2 * PATIENCE_S)
    assert 5 + 2 * FINISH_S < 60


@pytest.mark.slow
def test_a_server_that_falls_silent_while_the_adapter_is_logged_holds_up_the_end_by_a_minute(
    ended: dict[str, Ended],
) -> None:
    run = ended["lost with the adapter"]
    run.is_whole()
    # Whichever request meets the silence first.
    assert any(word in run.said for word in ("were not all logged within", "stopped answering"))
    assert "not everything was uploaded; for the rest: wandb sync" in run.said
    assert run.end_s < 2 * (5 + (2 + PANELS_SHARE) * PATIENCE_S)
    assert (2 + PANELS_SHARE) * FINISH_S < 60


@pytest.mark.slow
def test_a_panic_of_the_process_of_wandb_stops_no_run(ended: dict[str, Ended]) -> None:
    run = ended["panic"]
    run.is_whole()
    assert "stopped working" in run.said
    assert "wandb sync" in run.said


@pytest.mark.slow
def test_where_the_process_of_wandb_does_not_start_a_run_goes_without_it(
    ended: dict[str, Ended],
) -> None:
    run = ended["no process"]
    run.is_whole()
    assert run.out.count("W&B could not start offline") == 1
    assert "this run is not in W&B" in run.said
