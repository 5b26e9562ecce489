"""A config is found where it is named: here, beside who names it, or among those of kora."""

from __future__ import annotations

from pathlib import Path

import pytest

from kora.runs.config_files import configs_folder, find_config
from tests.support.cli import REPOSITORY


def test_ours_are_those_of_the_clone_and_have_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert configs_folder() == REPOSITORY / "configs"
    quickstart = str(REPOSITORY / "configs/quickstart.yaml")
    for name in ("quickstart", "quickstart.yaml", "configs/quickstart.yaml", "configs/quickstart"):
        assert find_config(name) == quickstart
    assert find_config("adapters/lora") == str(REPOSITORY / "configs/adapters/lora.yaml")
    assert find_config("nowhere.yaml") == "nowhere.yaml"


def test_what_is_here_comes_first_then_what_lies_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    beside = tmp_path / "mine"
    beside.mkdir()
    (beside / "quickstart.yaml").touch()
    assert find_config("quickstart.yaml", beside=beside) == str(beside / "quickstart.yaml")
    (tmp_path / "quickstart.yaml").touch()
    assert find_config("quickstart.yaml", beside=beside) == "quickstart.yaml"
