"""A mistyped name is told with the nearest, before torch is imported; right names pass."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kora.cli.spelling import TOP, refuse_mistyped
from kora.training.lightning_cli import parse

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--model.adapter=Lorra", "LoRA"),
        ("--model.head_lrr=1", "model.head_lr"),
        ("--modell.head_lr=1", "model.head_lr"),
        ("--trainer.max_epoch=3", "trainer.max_epochs"),
        ("--data.batchsize=3", "data.batch_size"),
    ],
)
def test_the_nearest_name_is_told_without_torch(typed: str, meant: str) -> None:
    code = "import sys\nfrom kora.cli.dispatch import main\n"
    code += "try: main(sys.argv[1:])\nexcept SystemExit as end: print(end.code)\n"
    code += "print('torch' in sys.modules)"
    words = [sys.executable, "-c", code, "fit", "--config", "quickstart", typed]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"]
    assert done.stderr.startswith(f"kora: error: {typed.partition('=')[0]}".rsplit(".", 1)[0])
    assert f"Did you mean '{meant}'?" in done.stderr


def test_a_strategy_that_was_removed_is_no_typing_mistake() -> None:
    with pytest.raises(ValueError, match=r"GatedKoRA: there is no such name\. It was removed: no"):
        refuse_mistyped(["--model.adapter", "GatedKoRA"])


def test_a_mistyped_key_of_a_file_names_the_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("model:\n  init_args:\n    adaptor: {class_path: kora.adapters.LoRA}\n")
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(mine))}: model.adaptor: .*'model.adapter'"
    ):
        refuse_mistyped(["--config", str(mine)])


def test_classes_of_ones_own_may_have_any_options(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("data:\n  class_path: my.Pictures\n  init_args: {batchsize: 3}\n")
    refuse_mistyped(["--config", str(mine), "--data.batchsize", "3"])


def test_every_config_of_ours_passes() -> None:
    files = [f for f in CONFIGS.rglob("*.yaml") if f.parent.name not in ("grids", "sweeps")]
    assert len(files) > 50
    for file in files:
        refuse_mistyped(["--config", str(file)])


def test_the_sections_are_those_of_the_parser() -> None:
    command = parse(["fit", "--config", str(CONFIGS / "quickstart.yaml")])
    assert set(vars(command.options)) - {"config"} == TOP
