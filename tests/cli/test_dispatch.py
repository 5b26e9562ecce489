"""The command `kora` itself: help, version, list, compare, and words that it does not know."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

import kora as package
from datamodules.recipe import UnreadableImageError
from kora.backbone.vit import Backbone
from kora.cli.dispatch import USAGE, _told
from kora.training.lightning_cli import parse
from tests.support.cli import REPOSITORY, kora, start, tiny_config, write_config
from tests.support.comparisons import FILES

Capture = pytest.CaptureFixture[str]
COMMANDS = (
    *("fit", "validate", "test", "predict", "params", "data", "grid", "compare", "cka", "inspect"),
    "list",
)


@pytest.mark.parametrize("args", [(), ("-h",), ("--help",), ("help",)])
def test_help_names_every_command(capfd: Capture, args: tuple[str, ...]) -> None:
    outcome = kora(capfd, *args)
    assert outcome.code == 0
    words = outcome.out.split()
    assert set(COMMANDS) <= set(words)


@pytest.mark.parametrize(("loaded", "kept"), [("triton", False), ("none", True)])
def test_at_its_end_triton_finds_nothing_leaked(loaded: str, kept: bool) -> None:
    # A frozen object is no garbage to Python, and a leak to the library that triton is made of.
    code = f"""
import atexit, gc, sys
atexit.register(lambda: print(gc.get_freeze_count() > 0))
from kora.cli.dispatch import _imported
_imported("json.tool")
sys.modules["{loaded}"] = sys
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{kept}\n"


@pytest.mark.parametrize("args", [("-V",), ("--version",)])
def test_version_is_that_of_the_package(capfd: Capture, args: tuple[str, ...]) -> None:
    outcome = kora(capfd, *args)
    assert outcome.code == 0
    assert outcome.out == f"kora {package.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_its_own(capfd: Capture, command: str) -> None:
    outcome = kora(capfd, command, "--help")
    assert outcome.code == 0
    assert "usage:" in outcome.out.lower()
    options = {
        "fit": "--trainer.max_epochs", "compare": "--metric", "params": "--json",
        "grid": "--dry_run", "predict": "--images",
    }  # fmt: skip
    assert options.get(command, "--help") in outcome.out


#: The options that the short help of a fit names, with a value for each.
SHORT = {
    "experiment": "mine", "runs_dir": "elsewhere", "seed_everything": "3", "resume": "false",
    "model.backbone.name": "vit_nano", "model.backbone.weights": "random",
    "model.adapter": "LoRA", "model.adapter.rank": "2", "model.optimizer.lr": "0.1",
    "model.head_lr": "0.1", "data": "ImageFolder", "data.root": "photos", "data.batch_size": "2",
    "trainer.max_epochs": "1", "trainer.accelerator": "cpu", "trainer.devices": "1",
    "trainer.precision": "bf16-mixed", "wandb.mode": "offline",
}  # fmt: skip


def test_the_help_of_a_fit_is_one_screen_of_options_that_there_are(capfd: Capture) -> None:
    short = kora(capfd, "fit", "--help").out
    assert len(short.splitlines()) < 30
    named = set(re.findall(r"--([\w.]+)", short))
    assert named == {*SHORT, "config", "help", "print_config"}
    config = REPOSITORY / "configs/image_folder.yaml"
    words = [f"--{key}={value}" for key, value in SHORT.items()]
    assert parse(["fit", f"--config={config}", *words]).options.runs_dir == "elsewhere"
    whole = kora(capfd, "fit", "--help", "all").out
    assert "--trainer.gradient_clip_val" in whole
    assert "--print_config" in whole


def test_the_config_that_the_words_make_is_printed(capfd: Capture) -> None:
    config = ("fit", "--config", "quickstart", "--trainer.max_epochs", "7", "--print_config")
    outcome = kora(capfd, *config)
    assert outcome.code == 0
    assert yaml.safe_load(outcome.out)["trainer"]["max_epochs"] == 7


def test_predict_alone_tells_of_its_own_options(capfd: Capture) -> None:
    outcome = kora(capfd, "predict")
    assert outcome.code == 2
    assert "required: run, --images" in outcome.err
    assert "--ckpt_path" in kora(capfd, "predict", "--help", "all").out


@pytest.mark.parametrize(
    ("file", "meant"),
    [
        ("configs/quikstart.yaml", "configs/quickstart.yaml"),
        ("lora.yaml", "configs/adapters/lora.yaml"),
    ],
)
def test_a_mistyped_config_is_told_with_the_nearest_and_without_torch(
    file: str, meant: str
) -> None:
    said = error_without_torch("fit", "--config", file)
    assert f"{file}: there is no such file. Did you mean '{meant}'?" in said


def test_a_mistyped_folder_of_pictures_is_told_without_torch() -> None:
    said = error_without_torch("adapt", "fotos")
    assert said == "kora: error: There is no folder fotos. Name a folder of pictures.\n"


def error_without_torch(*args: str) -> str:
    """What a command says that fails before it has imported torch."""
    code = "import sys, kora.cli\ntry: kora.cli.main(sys.argv[1:])\n"
    code += "finally: print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode > 0
    assert done.stdout == "False\n"
    return done.stderr


@pytest.mark.parametrize("command", ["grid", "tune"])
def test_a_dry_run_may_have_a_hyphen(capfd: Capture, command: str) -> None:
    assert "--dry-run" in kora(capfd, command, "--help").out


@pytest.mark.parametrize(("word", "meant"), [("fitt", "fit"), ("prams", "params"), ("lst", "list")])
def test_an_unknown_command_is_told_with_the_nearest(capfd: Capture, word: str, meant: str) -> None:
    outcome = kora(capfd, word, "--config", "x.yaml")
    assert outcome.code == 2
    assert outcome.out == ""
    (line,) = outcome.err.splitlines()
    assert f"'{word}'" in line
    assert f"Did you mean '{meant}'?" in line


def test_an_unknown_command_far_from_all_gets_no_guess(capfd: Capture) -> None:
    outcome = kora(capfd, "xyzzy")
    assert outcome.code == 2
    assert "Did you mean" not in outcome.err
    assert "kora --help" in outcome.err


def test_python_m_kora_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kora", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"kora {package.__version__}\n"


def test_list_shows_strategies_data_modules_and_configs_whole(capfd: Capture) -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    out = subprocess.run(
        [sys.executable, "-m", "kora", "list", "--all"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    words = set(out.split())
    assert {"LoRA", "KoRA", "Sequential", "ClsReadout", "datamodules.TinyImageNet"} <= words
    assert {
        "PaperForm",
        "SharedMatrix",
        "Injection",
        "model.adapter.feedback:",
        "Feedback",
    } <= words
    for path in (REPOSITORY / "configs").rglob("*.yaml"):
        assert str(path.relative_to(REPOSITORY)) in words, "a name that cannot be copied"


def test_outside_a_clone_the_configs_are_listed_under_the_names_that_find_them(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kora", "list", "configs"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert "configs/adapters/lora.yaml" in done.stdout.split()
    assert "kora init" in done.stdout


def test_a_list_is_one_screen_and_says_what_else_there_is(capfd: Capture) -> None:
    short = kora(capfd, "list").out
    assert len(short.splitlines()) < 40
    assert {"LoRA", "KoRA", "datamodules.ImageFolder"} <= set(short.split())
    assert "kora list composers" in short
    assert "configs" in short
    composers = kora(capfd, "list", "composers").out
    assert "ResidualSequential" in composers
    assert "datamodules" not in composers
    refused = kora(capfd, "list", "composer")
    assert refused.code == 2
    assert "composers" in refused.err


@pytest.fixture
def three_runs(here: Path, capfd: Capture) -> Path:
    """LoRA with seeds 0 and 1 and a linear probe with seed 0, on one experiment and backbone."""
    weights = {key: tensor.clone() for key, tensor in Backbone("vit_nano", weights="random")
               .model.state_dict().items()}  # fmt: skip
    save_file(weights, here / "w.safetensors")
    for seed, strategy in (("0", "LoRA"), ("1", "LoRA"), ("0", "LinearProbe")):
        outcome = kora(
            capfd, "fit", "--config", "tiny.yaml", "--seed_everything", seed,
            "--model.adapter", strategy, "--model.backbone.weights", "w.safetensors",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
    return here


@pytest.mark.slow
def test_runs_on_other_frozen_weights_are_not_compared(here: Path, capfd: Capture) -> None:
    for seed in ("0", "1"):  # random weights: another backbone with every seed
        assert kora(capfd, "fit", "--config", "tiny.yaml", "--seed_everything", seed).code == 0
    outcome = kora(capfd, "compare", "runs")
    assert outcome.code == 2
    assert "backbone.sha256" in outcome.err


@pytest.mark.slow
def test_compare_makes_a_table_and_a_picture_of_real_runs(three_runs: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "compare", "runs/tiny", "--out", "comparison")
    assert outcome.code == 0, outcome.err
    assert "LoRA" in outcome.out
    assert "LinearProbe" in outcome.out
    written = {path.name for path in (three_runs / "comparison").iterdir()}
    assert written == {*FILES, "classes.csv", "differing_images.csv"}
    table = (three_runs / "comparison/compare.md").read_text(encoding="utf-8")
    assert "comparison.png" in table
    differences = kora(capfd, "compare", "runs", "--reference", "LinearProbe").out
    assert "p (Holm)" in differences, "of each test image the runs kept what they said"
    assert "One seed says nothing about other seeds" in " ".join(differences.split())
    loss = kora(capfd, "compare", "runs", "--metric", "test/loss")
    assert loss.code == 0, loss.err
    assert "test/loss" in loss.out


def test_compare_of_nothing_is_a_mistake_told_in_words(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "compare", "runs")
    assert outcome.code == 2
    assert "runs" in outcome.err
    assert "Traceback" not in outcome.err


def test_compare_without_runs_shows_its_usage(capfd: Capture) -> None:
    outcome = kora(capfd, "compare")
    assert outcome.code == 2
    assert "usage: kora compare" in outcome.err


def test_a_bug_shows_its_traceback_and_exits_with_one(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(here)
    (here / "broken_strategy.py").write_text(
        "from kora.adapters import Strategy\n\n\n"
        "class Broken(Strategy):\n    def attach(self, backbone):\n        1 / 0\n"
    )
    write_config(here / "broken.yaml", tiny_config())
    args = ("--config", "broken.yaml", "--model.adapter", "broken_strategy.Broken")
    outcome = kora(capfd, "fit", *args)
    assert outcome.code == 1
    assert "ZeroDivisionError" in outcome.err
    assert "attach" in outcome.err


def test_a_grid_whose_reader_has_seen_enough_says_nothing_of_it(tmp_path: Path) -> None:
    grid = ("grid", "--config", "configs/grids/notebooks.yaml", "--dry_run")
    reader, writer = os.pipe()
    os.close(reader)
    with (tmp_path / "err").open("wb") as err, open(os.devnull, "rb") as nothing:
        process = start(grid, (nothing.fileno(), writer, err.fileno()), REPOSITORY, None)
        os.close(writer)
        assert process.wait() in (1, 128 + signal.SIGPIPE)  # rich ends with 1
    assert (tmp_path / "err").read_text() == ""


@pytest.mark.parametrize("command", ["--help", "list"])
def test_a_reader_that_has_seen_enough_is_told_of_no_error(command: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "kora", command], cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()  # as `| head` does
    assert process.stderr.read() == ""
    assert process.wait() in (1, 128 + signal.SIGPIPE)  # rich ends with 1


@pytest.mark.parametrize(
    ("how", "code", "words"),
    [(">&-", 0, ""), ("2>&-", 0, ""), (">/dev/full", 1, "what was printed cannot be written")],
)
def test_output_that_goes_nowhere_is_no_bug(how: str, code: int, words: str) -> None:
    command = f"COLUMNS=1 {sys.executable} -m kora list {how}"
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == bool(words)


def test_kora_debug_shows_the_traceback_of_a_mistake_too(
    here: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KORA_DEBUG", "1")
    outcome = kora(capfd, "test", "--config", "tiny.yaml")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert "--ckpt_path" in outcome.err


def test_an_error_from_a_loader_process_is_told_as_it_was_worded() -> None:
    words = "tiny.mat, frame 37: 'depths' is 0 everywhere. Remove this frame."
    trace = f"Traceback ...\n  File ...\ndatamodules.loading.UnreadableImageError: {words}\n"
    raised = UnreadableImageError(f"Caught UnreadableImageError in worker 0.\nOriginal {trace}")
    assert str(_told(raised)) == words
    assert str(_told(UnreadableImageError(words))) == words


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EACCES, "permissions"), (errno.ENOSPC, "Make room"), (errno.ENOTDIR, "Name another")],
)
def test_what_the_system_refuses_is_told_with_the_file_first_and_a_remedy(
    number: int, remedy: str
) -> None:
    told = str(_told(OSError(number, os.strerror(number), "runs/a")))
    assert told.startswith(f"runs/a: {os.strerror(number)}. ")
    assert remedy in told


def test_help_and_mistakes_are_told_before_torch_is_imported(tmp_path: Path) -> None:
    """All in one process, as only the first to import it would be seen to."""
    told = [[command, "--help"] for command in re.findall(r"^  (\w+)  ", USAGE, re.MULTILINE)]
    told += [
        [*words, "nowhere", *more]
        for words, more in (
            (["predict"], ["--images", "photos"]), (["export"], ["--format", "timm"]),
            (["inspect"], []), (["cka"], []), (["push"], ["me/cats"]), (["compare"], []),
            (["fit", "--config"], []), (["grid", "--config"], []), (["tune", "--config"], []),
        )
    ]  # fmt: skip
    code = "import sys\nfrom kora.cli.dispatch import main\n"
    code += f"for words in {told!r}:\n    try: main(words)\n    except SystemExit: pass\n"
    code += "    assert 'torch' not in sys.modules, words\n"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert len(told) > 20
    assert done.stderr.count("kora: error: ") == 9
