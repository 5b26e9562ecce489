"""`kora compare --wandb` gives the tables of the run folders, through the real public API.

The server here answers what `wandb.Api` asks, with configs and files of real offline runs.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kora.loggers.wandb_runs import RESULTS_KEY, Address, address_of, record_of
from tests.support.cli import all_ended, tiny_config, write_config
from tests.support.wandb_files import KEY, config_of, offline_folder, without_login
from tests.support.wandb_project import node, server

__all__ = ["server"]

# -- addresses and records -----------------------------------------------------------------------


def test_an_address_is_entity_project_and_perhaps_an_experiment() -> None:
    assert address_of("me/kora") == Address("me", "kora")
    assert address_of("me/kora/real/last100") == Address("me", "kora", "real/last100")
    for wrong in ("kora", "", "/kora", "me/"):
        with pytest.raises(ValueError, match="expected ENTITY/PROJECT"):
            address_of(wrong)


@pytest.mark.parametrize(
    ("state", "config", "says"),
    [
        ("running", {RESULTS_KEY: "{}"}, "is running"),
        ("crashed", {}, "was stopped before its end"),
        ("finished", {RESULTS_KEY: {"schema": 1}}, f"has no {RESULTS_KEY}"),
    ],
)
def test_a_run_without_a_record_says_why(state: str, config: dict[str, Any], says: str) -> None:
    text, why = record_of(SimpleNamespace(state=state, config=config))
    assert text is None
    assert says in why


def test_a_run_that_was_synced_after_a_crash_counts_with_its_record() -> None:
    run = SimpleNamespace(state="crashed", config={RESULTS_KEY: "{}"})
    assert record_of(run) == ("{}", "")


# -- against a server ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with offline runs of two strategies and two seeds."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(runs_dir=str(folder / "runs"), wandb={"mode": "offline"})
    config["model"]["init_args"]["backbone"].pop("weights")  # one backbone for all seeds
    path = write_config(folder / "tiny.yaml", config)
    runs = [
        (
            ["fit", "--config", path, "--seed_everything", seed, "--model.adapter", strategy],
            without_login(folder),
            folder / f"{strategy}{seed}.log",
        )
        for strategy in ("LinearProbe", "LoRA")
        for seed in ("0", "1")
    ]
    for (code, _), (*_, log) in zip(all_ended(runs), runs, strict=True):
        assert code == 0, log.read_text()
    return folder


def kora(
    folder: Path, *args: str, server: Any = None, key: str = KEY, python: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    environment = without_login(folder, COLUMNS="220", XDG_CACHE_HOME=str(folder / "cache"))
    if server is not None:
        environment |= {"WANDB_BASE_URL": server.url}
        environment |= {"WANDB_API_KEY": key} if key else {}
    return subprocess.run(
        [sys.executable, *python, "-m", "kora", *args], cwd=folder, env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def put(server: Any, folder: Path) -> list[Path]:
    """Every offline run below a folder into the project, as `wandb sync` would."""
    found = sorted(folder.glob("runs/*/*/*/version_*"))
    for run in found:
        wandb_folder = offline_folder(run)
        identity = wandb_folder.name.rpartition("-")[2]
        server.runs.append(node(identity, config_of(wandb_folder)))
        server.folders[identity] = wandb_folder / "files"
    return found


def lines(text: str) -> list[str]:
    """What was printed, without the paths, in which alone the two may differ."""
    return [line for line in text.splitlines() if "wrote " not in line]


@pytest.mark.slow
def test_the_tables_are_those_of_the_run_folders(
    trained: Path, server: Any, tmp_path: Path
) -> None:
    put(server, trained)
    here = kora(trained, "compare", "runs", "--out", str(tmp_path / "here"))
    there = kora(
        trained, "compare", "--wandb", "me/kora", "--out", str(tmp_path / "there"), server=server
    )
    assert here.returncode == there.returncode == 0, there.stderr
    assert lines(there.stdout) == lines(here.stdout)
    assert "LoRA" in there.stdout
    assert "p: two-sided" in there.stdout  # so the outcomes of the images were read
    tables = []
    for place in ("here", "there"):
        file = tmp_path / place / "compare.csv"
        rows = list(csv.DictReader(file.open(encoding="utf-8")))
        tables.append([{k: v for k, v in row.items() if k != "runs"} for row in rows])
    assert tables[0] == tables[1]
    both = kora(trained, "compare", "runs", "--wandb", "me/kora", server=server)
    assert lines(both.stdout) == lines(here.stdout)  # what is here and there counts once
    (page,) = (tmp_path / "there").glob("*.html")
    assert "val/accuracy" in page.read_text()  # learning curves
    assert server.asked.count("Runs") == 2 * 2  # four runs in pages of three
    assert server.asked.count("RunFiles") == 4


@pytest.mark.slow
def test_runs_are_fetched_and_compared_without_loading_torch(trained: Path, server: Any) -> None:
    put(server, trained)
    done = kora(
        trained, "compare", "--wandb", "me/kora", server=server, python=("-X", "importtime")
    )
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "wandb" in loaded
    assert not loaded & {"torch", "lightning", "timm"}


@pytest.mark.slow
def test_files_are_fetched_once(trained: Path, server: Any, tmp_path: Path) -> None:
    put(server, trained)
    for _ in range(2):
        done = kora(trained, "compare", "--wandb", "me/kora/tiny", server=server)
        assert done.returncode == 0, done.stderr
    assert server.asked.count("RunFiles") <= 4
    assert server.asked.count("Runs") == 4


@pytest.mark.slow
def test_runs_without_a_record_are_named_and_the_rest_compared(
    trained: Path, server: Any, tmp_path: Path
) -> None:
    put(server, trained)
    server.runs += [node(f"old{k}", {"experiment": "tiny"}) for k in range(5)]
    server.runs += [node("now", {"experiment": "tiny", RESULTS_KEY: "{}"}, "running")]
    server.runs += [node("cut", {"experiment": "tiny", RESULTS_KEY: '{"schema": 1, "exp'})]
    server.runs += [node("new", {"experiment": "tiny", RESULTS_KEY: '{"schema": 99}'})]
    server.folders |= {"cut": tmp_path, "new": tmp_path}
    done = kora(trained, "compare", "--wandb", "me/kora", server=server)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "old0 (run old0), old1 (run old1), old2 (run old2) and 2 more: each has no" in said
    assert "now (run now) is running, not finished; left out." in said
    assert re.search(r"cut/results.json: damaged", said)
    assert re.search(r"new/results.json: schema version is 99", said)
    assert "LoRA" in said


@pytest.mark.slow
def test_files_that_are_gone_leave_the_tables(trained: Path, server: Any, tmp_path: Path) -> None:
    put(server, trained)
    server.without_files = True
    (tmp_path / "cache").mkdir()
    done = kora(tmp_path, "compare", "--wandb", "me/kora", server=server)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "could not be fetched" in said
    assert "LinearProbe" in said
    assert "p: two-sided" not in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--wandb", "kora"), 2, "expected ENTITY/PROJECT"),
        (("--wandb", "me/other"), 2, "Could not find project"),
        (("--wandb", "me/kora/nothing"), 2, "there is no run to compare"),
        ((), 2, "name runs, or a project with --wandb"),
    ],
)
def test_a_wrong_address_is_told_in_words(
    tmp_path: Path, server: Any, args: tuple[str, ...], code: int, says: str
) -> None:
    server.runs.append(node("old", {"experiment": "tiny"}))
    done = kora(tmp_path, "compare", *args, server=server)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_without_login_or_server_nobody_waits(tmp_path: Path, server: Any) -> None:
    done = kora(tmp_path, "compare", "--wandb", "me/kora", server=server, key="")
    assert (done.returncode, server.asked) == (2, [])
    assert "wandb login" in done.stderr
    nobody = SimpleNamespace(url="http://127.0.0.1:9")
    done = kora(tmp_path, "compare", "--wandb", "me/kora", server=nobody)
    assert done.returncode == 1
    assert "does not answer" in done.stderr


# -- the dashboard -------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_dashboard_is_saved_and_the_next_call_updates_it(trained: Path, server: Any) -> None:
    pytest.importorskip("wandb_workspaces")
    put(server, trained)
    for _ in range(2):
        done = kora(trained, "dashboard", "me/kora/tiny", "--report", server=server)
        assert done.returncode == 0, done.stderr
    assert "view:   " in done.stdout
    assert "report: " in done.stdout
    view, report = server.views.values()  # one of each, not two
    assert view["displayName"] == report["displayName"] == "kora: tiny"
    section = json.loads(view["spec"])["section"]
    (runs,) = section["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    wanted = {(one["key"]["name"], one["value"]) for one in runs["filters"]["filters"]}
    assert wanted == {("jobType", "fit"), ("experiment", "tiny")}
    assert len(section["customRunColors"]) == 2
    text = json.dumps(json.loads(report["spec"]))
    assert "LoRA and LinearProbe are not told apart" in text
    assert "test/accuracy" in text
