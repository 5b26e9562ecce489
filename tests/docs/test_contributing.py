"""What CONTRIBUTING.md tells to do works as it stands there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, results
from tests.support.documents import Block, blocks, copy_configs, run_bash
from tests.support.kept import kept

TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")


TITLES = ("A new strategy in 4 steps", "A new data set in 4 steps")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the code, the configs and what the tests share, with the new files of both."""
    clone = tmp_path_factory.mktemp("clone")
    copy_configs(clone)
    for name in ("kora", "datamodules", "tests"):
        shutil.copytree(REPOSITORY / name, clone / name)  # what Python has compiled too
    shutil.copy(REPOSITORY / "pyproject.toml", clone)
    for title in TITLES:
        *steps, last = section(title)
        assert last.mark == "run"
        for step in steps:
            verb, _, name = step.mark.partition(": ")
            assert verb in ("file", "append")
            path = clone / name
            assert path.exists() == (verb == "append"), "a new file, or one to add to"
            with path.open("a", encoding="utf-8") as file:
                file.write(step.text)
    with kept(clone, clone / "tools"):
        yield clone


def section(title: str) -> list[Block]:
    """The marked blocks below a heading."""
    (text,) = (part for part in TEXT.split("\n## ") if part.startswith(title))
    return [block for block in blocks(text) if block.mark]


def follow(title: str, clone: Path) -> str:
    """Run the commands below a heading; what they printed."""
    steps = section(title)
    assert [s.mark.partition(":")[0] for s in steps] == ["file", "file", "append", "file", "run"]
    return run_bash(steps[-1].text, clone, code=clone, tools=clone / "tools")


@pytest.mark.slow
def test_a_new_strategy_in_4_steps(clone: Path) -> None:
    printed = follow(TITLES[0], clone)
    assert "ScaleShift" in printed
    own, shared = map(int, re.findall(r"(\d+) passed", printed))
    assert own == 3
    assert shared > 20
    record = results(clone / "runs/quickstart/ScaleShift/seed0/version_0")
    assert record["parameters"]["trainable"] - record["parameters"]["head"] == 2 * 128
    assert record["source"]["experiment"] == "quickstart_source"


@pytest.mark.slow
def test_a_new_data_set_in_4_steps(clone: Path) -> None:
    printed = follow(TITLES[1], clone)
    assert "3 classes, 28x28 pixels" in printed
    assert "2 passed" in printed
    record = results(clone / "runs/npz_images/LoRA/seed0/version_0")
    assert record["protocol"]["dataset"] == "NpzImages"
    # Brightness tells the classes apart, so a run that learns anything learns this.
    assert record["metrics"]["test/accuracy"] > 0.8
