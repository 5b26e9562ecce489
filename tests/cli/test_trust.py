"""Claims about commands that read a run of somebody else: it is data, and nothing in it runs."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.runs.lock import RunLock
from kora.runs.processes import Stop, run_child
from tests.support.cli import kora, started, tiny_config, write_config
from tests.support.grids import write_grid

_PAYLOAD = {
    "class_path": "lightning.pytorch.LightningDataModule.from_datasets",
    "init_args": {
        "test_dataset": {
            "class_path": "torch.utils.data.datapipes.map.Mapper",
            "init_args": {
                "datapipe": {
                    "class_path": "torch.utils.data.datapipes.map.SequenceWrapper",
                    "init_args": {"sequence": ["touch PWNED"]},
                },
                "fn": "os.system",
            },
        }
    },
}
_CALL = {"class_path": "os.system", "init_args": {"command": "touch PWNED"}}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `vit_nano` on weights that every machine has."""
    from kora.cli import main

    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(runs_dir=str(folder / "runs"))
    config["model"]["init_args"]["backbone"] = {"name": "vit_nano", "image_size": 32}
    main(["fit", "--config", str(write_config(folder / "tiny.yaml", config))])
    return folder / "runs" / "tiny" / "LoRA" / "seed0" / "version_0"


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "theirs")).relative_to(tmp_path)


def _change(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    change(config)
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def _readers(run: Path) -> list[list[str]]:
    config = ["--config", str(run / "config.yaml")]
    best = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt")]
    return [
        ["cka", str(run), "--images", "8"],
        ["test", *config, *best],
        ["validate", *config, *best],
        ["predict", *config, *best],
        ["params", *config],
        ["data", "describe", *config],
        ["data", "cache", *config],
        ["fit", *config],
        ["fit", f"--config={run / 'config.yaml'}", *best],
        ["fit", "--resume", str(run)],
    ]


def test_no_command_executes_what_a_run_names_as_its_data(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _change(run, lambda config: config.update(data=_PAYLOAD))
    for command in _readers(run):
        outcome = kora(capfd, *command)
        assert outcome.code == 2, command
        assert "names lightning.pytorch.LightningDataModule.from_datasets" in outcome.err
        assert str(run / "config.yaml") in outcome.err
        assert "Traceback" not in outcome.err
        assert not Path("PWNED").exists(), command


@pytest.mark.parametrize(
    "place",
    [
        "model", "model.adapter", "model.backbone", "model.optimizer", "model.head_layers",
        "data", "data.subset", "trainer.callbacks", "trainer.logger", "trainer.plugins",
        "trainer.strategy", "trainer.profiler", "wandb", "save",
    ],
)  # fmt: skip
def test_nor_anywhere_else_in_it(place: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clean = (run / "config.yaml").read_text(encoding="utf-8")
    *parents, last = place.split(".")
    for value in (_CALL, "os.system", [_CALL], ["os.system"]):

        def change(config: dict[str, Any], value: Any = value) -> None:
            for parent in parents:
                config = config[parent]
                config = config.get("init_args", config)
            config[last] = value

        (run / "config.yaml").write_text(clean, encoding="utf-8")
        _change(run, change)
        for command in _readers(run)[1:2]:
            outcome = kora(capfd, *command)
            assert outcome.code, command
            assert "Traceback" not in outcome.err
            assert not Path("PWNED").exists()


def test_a_run_cannot_hide_it_in_its_source_stage(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tiny_config(data=_PAYLOAD)
    (run / "source.yaml").write_text(yaml.safe_dump(source), encoding="utf-8")
    write_config(run / "middle.yaml", tiny_config(source=str(run / "source.yaml")))
    for first in ("source.yaml", "middle.yaml"):
        _change(run, lambda config, first=first: config.update(source=str(run / first)))
        outcome = kora(capfd, "fit", "--config", run / "config.yaml")
        assert outcome.code
        assert "LightningDataModule.from_datasets" in outcome.err
        assert not Path("PWNED").exists()


def _link(run: Path) -> list[str]:
    Path("link.yaml").symlink_to(run / "config.yaml")
    return ["fit", "--config", "link.yaml"]


def _below(run: Path) -> list[str]:
    (run / "more").mkdir()
    (run / "config.yaml").rename(run / "more/any.txt")
    (run / "config.yaml").write_text("{}")
    return ["fit", "--config", str(run / "more/any.txt")]


def _part(run: Path) -> list[str]:
    write_config(run / "data.yaml", _PAYLOAD)
    write_config(Path("mine.yaml"), tiny_config())
    return ["fit", "--config", "mine.yaml", "--data", str(run / "data.yaml")]


def _base(run: Path) -> list[str]:
    write_config(Path("grid.yaml"), {"base": str(run / "config.yaml"), "seeds": [0]})
    return ["grid", "--config", "grid.yaml", "--dry_run"]


def _matched(run: Path) -> list[str]:
    write_config(Path("mine.yaml"), tiny_config())
    return ["params", "--config", "mine.yaml", "--match", str(run / "config.yaml")]


@pytest.mark.parametrize(
    "way",
    [
        lambda run: ["fit", f"-c{run / 'config.yaml'}"],
        lambda run: ["fit", "--config", f"config: {run / 'config.yaml'}"],
        lambda run: ["test", "--config", str(run / "config.yaml"), "--help"],
        lambda run: ["fit", "--config", str(run / "config.yaml"), "--experiment", "-h"],
        _link, _below, _part, _base, _matched,
    ],
    ids=["glued", "within", "help", "help as a value", "link", "below", "part", "base", "match"],
)  # fmt: skip
def test_no_other_way_to_its_files_opens_the_lists(
    way: Callable[[Path], list[str]], run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("theirs_module.py").write_text("open('PWNED', 'w')")
    _change(run, lambda config: config.update(data=_PAYLOAD))
    _change(run, lambda config: config["model"]["init_args"].update(adapter="theirs_module.A"))
    command = way(run)
    sys.path.insert(0, os.getcwd())
    try:
        outcome = kora(capfd, *command)
    finally:
        sys.path.pop(0)
    assert "Traceback" not in outcome.err
    assert not Path("PWNED").exists()
    assert "theirs_module" not in sys.modules
    if "--help" not in command:
        assert outcome.code == 2, outcome.err
        assert "may name only classes of KoRA" in outcome.err


def test_a_glued_option_reads_a_file_of_a_run_as_any_other(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_grid(run, base=["quickstart"], vary={}, seeds=[0], set={"data": _PAYLOAD})
    for option in (["-c", str(run / "grid.yaml")], [f"-c{run / 'grid.yaml'}"]):
        outcome = kora(capfd, "grid", *option, "--dry_run")
        assert outcome.code != 0
        assert "may name only classes of KoRA" in outcome.err
    assert not Path("PWNED").exists()


def test_a_run_unpacks_nothing_from_which_python_would_import(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with zipfile.ZipFile(run / "data.zip", "w") as archive:
        for name in ("a/1.png", "b/1.png", "a/__init__.py"):
            archive.writestr(name, "x")
    data = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"root": "torch", "archive": str(run / "data.zip"), "image_size": 32},
    }
    _change(run, lambda config: config.update(data=data))
    outcome = kora(capfd, *_readers(run)[1])
    assert outcome.code == 2
    assert "would unpack theirs/data.zip into torch" in outcome.err
    assert not Path("torch").exists()


def test_a_run_writes_no_line_into_the_script_of_a_queue(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _change(run, lambda config: config.update(runs_dir="runs\ntouch PWNED\n#"))
    write_grid(Path(), base=str(run / "config.yaml"), vary={}, seeds=[0])
    outcome = kora(capfd, "grid", "--config", "grid.yaml", "--dry_run")
    assert outcome.code != 0
    assert "expected a folder without control characters" in outcome.err


def test_a_run_fills_no_folder_outside_of_the_working_directory(
    run: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    with zipfile.ZipFile(run / "data.zip", "w") as archive:
        for name in ("a/1.png", "b/1.png", "usercustomize.py"):
            archive.writestr(name, "x")
    arguments = {"root": "~/site-packages", "archive": str(run / "data.zip"), "image_size": 32}
    data = {"class_path": "datamodules.ImageFolder", "init_args": arguments}
    _change(run, lambda config: config.update(data=data))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    arguments["archive"] = str(tmp_path / "theirs/data.zip")
    _change(tmp_path / "theirs", lambda config: config.update(data=data))
    outcome = kora(capfd, *_readers(tmp_path / "theirs")[1])
    assert outcome.code == 2
    assert "outside of the working directory" in outcome.err
    assert not home.exists()


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_a_run_calls_its_lock_is_not_written_through(kind: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    if kind == "link":
        (tmp_path / ".running").symlink_to(mine)
    else:
        os.mkfifo(tmp_path / ".running")
    with pytest.raises(OSError, match=r"\.running"):
        RunLock(tmp_path)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["adapter/adapter_model.safetensors", "checkpoints/best.ckpt.sha256"]
)
def test_a_pipe_or_a_device_in_a_run_is_no_file_of_it(
    name: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = run / name
    for made in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")):
        path.unlink()
        made()
        commands = (["predict", run, "--images", "none"], _readers(run)[1])
        outcome = kora(capfd, *commands["sha256" in name])
        assert outcome.code
        assert "Traceback" not in outcome.err
        assert "It is a pipe or a device, and no file" in outcome.err


@pytest.fixture
def planted(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory with a `kora` of somebody else, which this process does not see."""
    (here / "kora").mkdir()
    (here / "kora/__init__.py").write_text("open('PWNED', 'w')")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(here))])
    return here


def test_what_a_command_starts_imports_nothing_from_the_working_directory(planted: Path) -> None:
    with Stop.on_signals() as stop:
        assert run_child(["--version"], stop=stop) == 0
    assert not Path("PWNED").exists()


def test_what_a_grid_starts_imports_nothing_from_the_working_directory(planted: Path) -> None:
    with started("grid", "--config", write_grid(planted), log=planted / "log") as process:
        assert process.wait() == 0, (planted / "log").read_text()
    assert not Path("PWNED").exists()


def test_a_run_cannot_trust_modules_itself(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _change(run, lambda config: config.update(data=_PAYLOAD, trust=["lightning", "torch", "os"]))
    outcome = kora(capfd, *_readers(run)[1])
    assert outcome.code == 2
    assert not Path("PWNED").exists()


def test_a_config_of_ones_own_may_name_any_class(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()
    config["model"]["init_args"]["adapter"]["class_path"] = "tests.runs.test_trust.Mine"
    outcome = kora(capfd, "fit", "--config", write_config(here / "own.yaml", config))
    assert outcome.code == 0, outcome.err
    own = here / "runs" / "tiny" / "Mine" / "seed0" / "version_0"
    test = ["test", "--config", own / "config.yaml", "--ckpt_path", own / "checkpoints/best.ckpt"]
    refused = kora(capfd, *test)
    assert refused.code == 2
    assert "--trust tests.runs.test_trust" in refused.err
    assert kora(capfd, *test, "--trust", "tests.runs.test_trust").code == 0
