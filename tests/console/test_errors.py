"""The parser's own messages, as it words them, become one line that matters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kora.console.errors import explain
from kora.training.lightning_cli import parse
from tests.support.cli import tiny_config, write_config

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # parsing sets it; monkeypatch puts it back
    write_config(tmp_path / "tiny.yaml", tiny_config())


def complaint(capfd: Capture, *args: str) -> str:
    """What `kora fit` says of these options; it must be one line, and the exit code 2."""
    with pytest.raises(SystemExit) as stop:
        parse(["fit", "--config", "tiny.yaml", *args])
    assert stop.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("kora: error: ")
    assert len(line) < 250
    return line.removeprefix("kora: error: ")


BOMB = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 30)
)
KORA = ("--model.adapter", "KoRA")


@pytest.mark.parametrize(
    ("args", "place", "meant"),
    [
        # A class that does not exist, at every depth.
        (("--model", "ClassificationTsk"), "model", "ClassificationTask"),
        (("--data", "TinyImagenett"), "data", "TinyImageNet"),
        (("--model.adapter", "lora"), "adapter", "LoRA"),
        (("--model.adapter", "FullFinetune"), "adapter", "FullFineTune"),
        ((*KORA, "--model.adapter.composer", "Sequentiel"), "composer", "Sequential"),
        ((*KORA, "--model.adapter.readout", "CLSReadout"), "readout", "ClsReadout"),
        # An option that does not exist, at every depth.
        (("--experimnt", "x"), "experimnt", "experiment"),
        (("--wandb.projct", "x"), "wandb.projct", "wandb.project"),
        (("--trainer.precison", "16"), "precison", "trainer.precision"),
        (("--model.backbone.nme", "x"), "'nme'", "name"),
        (("--model.adapter.alhpa", "1"), "'alhpa'", "alpha"),
        (("--data.subset.per_clas", "5"), "'per_clas'", "per_class"),
        (("--data.batchsize", "5"), "batchsize", "batch_size"),
    ],
)
def test_a_wrong_name_is_named_with_the_nearest_right_one(
    capfd: Capture, args: tuple[str, ...], place: str, meant: str
) -> None:
    line = complaint(capfd, *args)
    assert place in line
    assert line.endswith(f"Did you mean '{meant}'?")


@pytest.mark.parametrize(
    ("args", "place", "found", "expected"),
    [
        (("--wandb.mode", "onlin"), "wandb.mode", "onlin", "'offline'"),
        (("--trainer.max_epochs", "many"), "trainer.max_epochs", "many", "int"),
        (("--model.adapter.rank", "2.5"), "rank", "2.5", "int"),
        (("--data.style", "oil"), "style", "oil", "'night'"),
        (("--data", "NYUDepthV2", "--data.depth", "foo"), "depth", "foo", "'depths'"),
        (("--data.subset.how", "best"), "how", "best", "'stratified'"),
        (("--allow_degenerate", "perhaps"), "allow_degenerate", "perhaps", "bool"),
        (("--model.schedule", "step"), "schedule", "step", "'cosine'"),
    ],
)
def test_a_wrong_value_is_told_with_its_place_and_what_would_do(
    capfd: Capture, args: tuple[str, ...], place: str, found: str, expected: str
) -> None:
    line = complaint(capfd, *args)
    assert line.startswith(f"{place}: ")
    assert found in line
    assert expected in line


def test_a_name_unlike_all_others_gets_no_guess(capfd: Capture) -> None:
    assert "Did you mean" not in complaint(capfd, "--qqqq", "1")


def test_a_name_unlike_all_others_is_told_with_those_that_are_few(capfd: Capture) -> None:
    line = complaint(capfd, "--model.adapter.zzz", "1")
    assert "'zzz'" in line
    assert all(name in line for name in ("rank", "alpha", "dropout", "sites"))


def test_a_class_of_the_wrong_kind_is_refused_by_its_path(capfd: Capture) -> None:
    line = complaint(capfd, "--model.adapter", "torch.nn.Linear")
    assert "torch.nn.Linear" in line
    assert "Strategy" in line


def test_a_module_that_does_not_exist_is_named(capfd: Capture) -> None:
    assert "'nowhere'" in complaint(capfd, "--model.adapter", "nowhere.Module")


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("trainer: {max_epochz: 3}", ["trainer.max_epochz", "Did you mean 'trainer.max_epochs'?"]),
        ("tariner: {max_epochs: 3}", ["tariner", "Did you mean 'trainer.max_epochs'?"]),
        ("model: {init_args: {adaptor: LoRA}}", ["'adaptor'", "Did you mean 'adapter'?"]),
        ("model: {init_ars: {head_lr: 1}}", ["'init_ars.head_lr'", "Did you mean 'init_args'?"]),
        ("data: {clas_path: x}", ["'clas_path'", "Did you mean 'class_path'?"]),
        ("experiment: [1]", ["experiment: ", "[1]"]),
        ("- a list", ["- a list"]),
        ("trainer: [", ["line 2"]),
        ("", ["more.yaml: is empty"]),
        ("trainer: {}\nmodel:\n  x: 1\n  x: 2", ["more.yaml: 'x' is in line 3 and", "line 4,"]),
        (f"seed_everything: {'9' * 5000}", ["more.yaml: cannot be read as YAML", "4300 digits"]),
        (BOMB, ["more.yaml: holds more than 100000 values", "aliases"]),
        ("experiment: &a [*a]", ["more.yaml: holds more than 100000 values", "aliases"]),
    ],
)
def test_a_mistake_in_a_file_is_told_like_one_in_an_option(
    capfd: Capture, text: str, fragments: list[str]
) -> None:
    Path("more.yaml").write_text(f"{text}\n", encoding="utf-8")
    line = complaint(capfd, "--config", "more.yaml")
    assert all(fragment in line for fragment in fragments), line


def test_debug_shows_the_whole_of_what_the_parser_says(
    capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KORA_DEBUG", "1")
    with pytest.raises(SystemExit) as stop:
        parse(["fit", "--config", "tiny.yaml", "--trainer.max_epoch", "1"])
    assert stop.value.code == 2
    assert "usage:" in capfd.readouterr().err


@pytest.mark.parametrize(
    "option", ["model.head_lr", "model.backbone.image_size", "model.adapter.blocks", "data.subset"]
)
def test_null_is_taken_at_every_depth(option: str) -> None:
    found = parse(["fit", "--config", "tiny.yaml", f"--{option}", "null"]).resolved()
    *path, name = option.split(".")
    for key in path:
        found = found[key]
        found = found.get("init_args", found)
    assert found[name] is None


def test_a_value_that_looks_like_a_message_of_the_parser_imports_nothing() -> None:
    message = (
        'Parser key "model":\n  Expected a dot import path string: x\n'
        "Given value: Subtypes: ['antigravity.Joke']"
    )
    explain(message, ["model"])
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "options", [("--model.adapter", "KoRA", "--model.adapter.composer", "kora.adapters.KAN"),
                ("--model.adapter", "kora.adapters.GatedKoRA")],
)  # fmt: skip
def test_a_class_that_was_removed_is_called_so(capfd: Capture, options: tuple[str, ...]) -> None:
    line = complaint(capfd, "--config", "tiny.yaml", *options)
    assert "It was removed: no measurement speaks for it" in line
