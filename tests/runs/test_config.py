"""Configs of earlier versions, with the options that came later at their defaults."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from kora.runs.config import with_defaults
from kora.training.lightning_cli import parse
from tests.support.cli import REPOSITORY

KORA = {"class_path": "kora.adapters.KoRA", "init_args": {"rank": 4}}


def test_options_of_a_class_are_filled_in_and_none_is_changed() -> None:
    filled = with_defaults(KORA)["init_args"]
    assert filled["rank"] == 4
    assert filled["pool"] == "mean"
    assert KORA["init_args"] == {"rank": 4}


def test_classes_within_classes_and_within_lists_are_filled_in() -> None:
    config = {"model": {"class_path": "a.B", "init_args": {"adapters": [KORA]}}, "seed": 1}
    filled = with_defaults(config)
    assert filled["model"]["init_args"]["adapters"][0]["init_args"]["pool"] == "mean"
    assert filled["seed"] == 1


def test_a_class_that_is_not_there_stays_as_it_is() -> None:
    for path in ("nowhere.Adapter", "kora.adapters.Nobody", "Bare"):
        config = {"class_path": path, "init_args": {"rank": 4}}
        assert with_defaults(config) == config


def test_a_file_does_not_choose_what_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign.py").write_text("class Adapter:\n    def __init__(self, a=1): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = {"class_path": "foreign.Adapter", "init_args": {}}
    assert with_defaults(config) == config
    assert "foreign" not in sys.modules
    importlib.import_module("foreign")
    assert with_defaults(config)["init_args"] == {"a": 1}
    del sys.modules["foreign"]


def test_what_the_parser_resolves_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # parsing sets it; monkeypatch puts it back
    monkeypatch.chdir(REPOSITORY)
    config: dict[str, Any] = parse(["fit", "--config", "configs/quickstart.yaml"]).resolved()
    earlier = copy.deepcopy(config)
    for place in (earlier["model"], earlier["model"]["init_args"]["adapter"], earlier["data"]):
        assert place["init_args"].popitem()
    del earlier["model"]["init_args"]["head_init"]
    assert with_defaults(config) == with_defaults(earlier)
