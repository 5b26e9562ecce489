import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kora
from kora.runs.durable import write_atomically
from kora.runs.provenance import collect_versions, git_commit
from kora.runs.results import RESULTS_NAME, RunResult, find_runs, read_results, write_results
from tests.support.faults import damages


def result(**changes: Any) -> RunResult:
    values: dict[str, Any] = {
        "experiment": "quickstart",
        "strategy": "LoRA",
        "stage": "fit",
        "seed": 0,
        "metrics": {"test/accuracy": 0.7104, "test/weighted_f1": 0.7, "test/loss": 1.23456},
        "baselines": {
            "chance": {"accuracy": 0.1},
            "majority": {"accuracy": 0.125, "weighted_f1": 0.0278},
        },
        "protocol": {"dataset": "Synthetic", "sizes": {"train": 50, "test": 100}},
        "audit": {"problems": []},
        "parameters": {"trainable": 1_256_548, "total": 87_055_204, "percent": 1.443, "head": 10},
        "seconds": {"fit": 12.34, "test": 2.0},
        "peak_memory_mib": 1024.5,
        "backbone": {"name": "vit_nano", "weights": "pretrained", "sha256": "ab"},
    }
    return RunResult(**{**values, **changes})


def run_folder(root: Path, version: int, **changes: Any) -> Path:
    made = result(**changes)
    folder = root / made.experiment / made.strategy / f"seed{made.seed}" / f"version_{version}"
    write_results(folder, made)
    return folder


def test_what_is_written_is_read_back_from_folder_and_file(tmp_path: Path) -> None:
    written = result(source={"experiment": "cifar100", "folder": "runs/x"})
    path = write_results(tmp_path / "run", written)
    assert path == tmp_path / "run" / RESULTS_NAME
    assert read_results(tmp_path / "run") == read_results(path) == written
    assert [p.name for p in path.parent.iterdir()] == [RESULTS_NAME]  # no temporary file is left
    assert json.loads(path.read_text())["schema"] == 1


def test_scalars_of_arrays_become_numbers_and_nan_survives_strict_json(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    metrics = {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": math.nan, "d": np.int64(3)}
    path = write_results(tmp_path, result(metrics=metrics, protocol={"root": tmp_path, "s": (1,)}))
    text = path.read_text()
    assert "NaN" not in text
    read = read_results(path)
    assert (read.metrics["a"], read.metrics["b"], read.metrics["d"]) == (0.5, 2.0, 3.0)
    assert math.isnan(read.metrics["c"])
    assert read.protocol == {"root": str(tmp_path), "s": [1]}


def test_a_type_without_json_is_named_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"protocol\.sizes\[1\] is of type ndarray"):
        write_results(tmp_path, result(protocol={"sizes": [0, np.zeros(2)]}))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def half(path: Path) -> None:
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(target, half)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_each_unreadable_run_has_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="there is no run here"):
        read_results(tmp_path)
    (tmp_path / "metrics.csv").touch()
    with pytest.raises(ValueError, match="stopped before its end"):
        read_results(tmp_path)
    path = tmp_path / RESULTS_NAME
    for content, kind, words in (
        ('{"schema": 1, "exp', RuntimeError, "damaged"),
        ("[1]", RuntimeError, "holds list"),
        ('{"schema": 1}', RuntimeError, "key 'experiment' is missing"),
        ('{"schema": 7}', ValueError, "schema version is 7.*reads version 1"),
        ("{}", ValueError, "schema version is None"),
    ):
        path.write_text(content)
        with pytest.raises(kind, match=words) as error:
            read_results(tmp_path)
        assert str(path) in str(error.value)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuntimeError, match="damaged"):
        read_results(path)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a word as metric": ({"metrics": {"test/accuracy": "high"}}, "metrics.test/accuracy is 'high'"),
    "no protocol": ({"protocol": None}, "protocol is None; expected a table"),
    "two strategies": ({"strategy": ["LoRA"]}, r"strategy is \['LoRA'\]; expected a text"),
    "an experiment without a name": ({"experiment": None}, "experiment is None"),
    "a seed in words": ({"seed": "zero"}, "seed is 'zero'; expected a whole number"),
    "a seed that is true": ({"seed": True}, "seed is True"),
    "no settings": ({"settings": None}, "settings is None"),
    "settings in a list": ({"settings": {"adapter": []}}, r"settings.adapter is \[\]"),
    "no arguments": (
        {"settings": {"adapter": {"class_path": "A", "init_args": None}}},
        "settings.adapter.init_args is None",
    ),
    "no class": (
        {"settings": {"adapter": {"class_path": 5, "init_args": {}}}},
        "settings.adapter.class_path is 5",
    ),
    "a baseline as number": ({"baselines": {"chance": 0.1}}, "baselines.chance is 0.1"),
    "a baseline in words": ({"baselines": {"chance": {"accuracy": ""}}}, "chance.accuracy is ''"),
    "seconds in words": ({"seconds": {"fit": "x"}}, "seconds.fit is 'x'; expected a number"),
    "memory in a list": ({"peak_memory_mib": [1]}, r"peak_memory_mib is \[1\]"),
    "a metric that no sum can hold": (
        {"metrics": {"test/accuracy": 1e308}},
        r"accuracy is 1e\+308; expected a number below 1e100",
    ),
    "seconds without end": ({"seconds": {"fit": 10**400}}, "seconds.fit is 1000"),
    "half a step": ({"tested_step": 0.5}, "tested_step is 0.5; expected a whole number"),
    "finished in words": ({"finished": "no"}, "finished is 'no'; expected true or false"),
    "a size that is nothing": (
        {"protocol": {"sizes": {"train": None}}},
        "protocol.sizes.train is None; expected a whole number",
    ),
    "a subset in words": ({"protocol": {"subset": "x"}}, "protocol.subset is 'x'"),
    "a share in words": ({"protocol": {"subset": {"fraction": "x"}}}, "subset.fraction is 'x'"),
    "a long value": ({"stage": ["x" * 9999]}, r"stage is \['x{10,80}\.\.\."),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_value_of_the_wrong_type_is_named(tmp_path: Path, case: str) -> None:
    changes, words = WRONG[case]
    path = tmp_path / RESULTS_NAME
    path.write_text(json.dumps({**result().to_dict(), **changes}))
    with pytest.raises(RuntimeError, match=words) as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value)) < 300 + len(str(path))


def test_a_number_that_was_changed_is_told_unless_the_change_is_meant(tmp_path: Path) -> None:
    written = result(metrics={"test/accuracy": 0.465})
    path = write_results(tmp_path, written)
    path.write_text(path.read_text().replace("0.465", "0.965"))
    with pytest.raises(RuntimeError, match=r"record_sha256.*run it again.*delete the key") as error:
        read_results(path)
    assert str(error.value).startswith(f"{path}: ")
    edited = json.loads(path.read_text())
    del edited["record_sha256"]
    path.write_text(json.dumps(edited))
    assert read_results(path).metrics == {"test/accuracy": 0.965}


def test_whatever_happens_to_the_file_the_record_is_right_or_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    written = result(settings={"adapter": {"class_path": "LoRA", "init_args": {"r": 4}}})
    write_results(run, written)
    refused = 0
    for damage in damages(run, flips=200):
        try:
            assert read_results(run) == written, damage
        except (RuntimeError, ValueError) as error:
            refused += str(run / RESULTS_NAME) in str(error)
    assert refused > 180  # white space may become other white space


def test_find_runs_sorts_versions_by_number_and_accepts_runs_files_and_roots(
    tmp_path: Path,
) -> None:
    runs = [run_folder(tmp_path, version) for version in (9, 10)]
    other = run_folder(tmp_path, 0, strategy="KoRA")
    write_results(runs[0] / "adapter", result())  # inside a run: not a run of its own
    (tmp_path / ".cache").mkdir()
    write_results(tmp_path / ".cache", result())
    assert find_runs([tmp_path]) == [other, *runs]
    assert find_runs([runs[0], runs[0] / RESULTS_NAME, tmp_path / "quickstart" / "LoRA"]) == runs
    with pytest.raises(FileNotFoundError, match="nothing"):
        find_runs([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there is no run here"):
        find_runs([tmp_path, tmp_path / "empty"])


def test_versions_name_python_kora_and_the_packages() -> None:
    versions = collect_versions()
    assert versions["kora"] == kora.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "lightning", "timm", "torchmetrics"} <= set(versions)


def commit_seen_by(root: Path) -> str:
    """git_commit() of the copy of KoRA in `root`, in a process of its own."""
    command = "from kora.runs.provenance import git_commit; print(git_commit())"
    environment = {**os.environ, "GIT_DIR": "/nowhere"}  # as inside a git hook
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_commit_is_that_of_the_source_tree_marked_when_dirty_else_none(tmp_path: Path) -> None:
    package = tmp_path / "kora"
    (package / "runs").mkdir(parents=True)
    source = Path(kora.__file__).parent
    for name in ("__init__.py", "start_up.py", "runs/__init__.py", "runs/provenance.py"):
        (package / name).write_text((source / name).read_text())
    assert commit_seen_by(tmp_path) == "None"  # no repository

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / ".gitignore").write_text("kora/\n__pycache__/\n")
    git("add", ".gitignore")
    git("commit", "-q", "-m", "someone else's repository")
    assert commit_seen_by(tmp_path) == "None"  # it does not track kora, as with a .venv inside
    git("add", "-f", "kora/__init__.py", "kora/runs/provenance.py")
    git("commit", "-q", "-m", "source")
    assert commit_seen_by(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("no code")
    assert commit_seen_by(tmp_path) == git("rev-parse", "HEAD")
    with (package / "__init__.py").open("a") as file:
        file.write("changed = 1\n")
    assert commit_seen_by(tmp_path) == git("rev-parse", "HEAD") + "+dirty"


def test_commit_is_quick_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    start = time.perf_counter()
    assert git_commit() is None
    assert time.perf_counter() - start < 1


def test_import_is_light() -> None:
    heavy = {"torch", "lightning", "timm", "matplotlib", "scipy"}
    modules = "kora.runs.results, kora.reports.summary, kora.reports.audit"
    command = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "kora.reports.audit" in loaded, done.stderr
    assert not heavy & loaded


def test_a_written_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    def private(path: Path) -> None:
        path.write_text("x")
        path.chmod(0o600)

    plain = tmp_path / "plain"
    plain.write_text("x")
    written = write_atomically(tmp_path / "written", private)
    assert written.stat().st_mode == plain.stat().st_mode
