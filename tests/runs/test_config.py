"""Configs of earlier versions, with the options that came later at their defaults."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.adapters import Strategy, describe
from kora.runs.config import current, with_defaults
from kora.runs.trust import build
from kora.training.lightning_cli import parse
from tests.support.cli import REPOSITORY

KORA = {"class_path": "kora.adapters.KoRA", "init_args": {"d_comp": 4}}
LORA = {"class_path": "kora.adapters.LoRA", "init_args": {"rank": 4}}


def test_options_of_a_class_are_filled_in_and_none_is_changed() -> None:
    filled = with_defaults(LORA)["init_args"]
    assert filled["rank"] == 4
    assert filled["dropout"] == 0.0
    assert LORA["init_args"] == {"rank": 4}


def test_classes_within_classes_and_within_lists_are_filled_in() -> None:
    config = {"model": {"class_path": "a.B", "init_args": {"adapters": [KORA]}}, "seed": 1}
    filled = with_defaults(config)
    adapter = filled["model"]["init_args"]["adapters"][0]["init_args"]
    assert adapter["alpha"] == 1.0
    assert adapter["node_form"]["init_args"]["pool"] == "mean"
    assert filled["seed"] == 1


def _part(name: str, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"kora.adapters.{name}", "init_args": arguments}


#: Options of KoRA as they were written before they were those of its nodes, and as they are now.
FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": (
        {"rank": 3, "inject": False, "pool": "cls", "blocks": [1], "node_form": None},
        _part("PaperForm", rank=3, inject=False, pool="cls", blocks=[1]),
    ),
    "refined": (
        {"rank": 8, "inject": False, "pool": "both", "sites": ["proj"],
         "node_form": _part("NodeForm", norm=False, init="zero", node_dropout=0.1)},
        _part("RefinedForm", norm=False, node_dropout=0.1, pool="both", sites=["proj"],
              matrix=_part("PlainMatrix", init="zero")),
    ),
    "injected": (
        {"rank": 3, "dropout": 0.2, "sites": ["fc1"], "node_form": _part("NodeForm", shared=True)},
        _part("RefinedForm", sites=["fc1"], matrix=_part("SharedMatrix"),
              inject=_part("Injection", rank=3, dropout=0.2, sites=["fc1"])),
    ),
    "over LoRA": (
        {"rank": 3, "sites": ["proj", "fc1"], "node_sites": ["proj"], "node_blocks": [-1],
         "node_form": _part("NodeForm")},
        _part("RefinedForm", sites=["proj"], blocks=[-1], matrix=_part("PlainMatrix"),
              inject=_part("Injection", rank=3, sites=["proj", "fc1"])),
    ),
    "factors": (
        {"rank": 3, "inject": False, "node_form": _part("NodeForm", direct=False)},
        _part("RefinedForm", matrix=_part("FactoredMatrix", rank=3)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_options_of_nodes_that_were_those_of_kora_are_found_in_their_form(name: str) -> None:
    before, form = FORMS[name]
    old, new = _part("KoRA", d_comp=4, **before), _part("KoRA", d_comp=4, node_form=form)
    assert current(old) == new
    assert current(new) == new
    assert with_defaults(old) == with_defaults(new)
    adapter = build(Strategy, old, origin="adapter_config.json")
    assert describe(adapter)["init_args"]["node_form"] == with_defaults(form)
    assert describe(adapter) == describe(build(Strategy, new, origin="adapter_config.json"))


@pytest.mark.parametrize(
    ("options", "gone"), [({"orthogonal": "hard"}, "OrthogonalMatrix"),
                          ({"orthogonal": "soft", "penalty": 0.1}, "DecorrelatedMatrix")],
)  # fmt: skip
def test_a_form_of_before_whose_matrices_are_gone_is_not_taken_for_another(
    options: dict[str, object], gone: str
) -> None:
    old = _part("KoRA", d_comp=4, inject=False, node_form=_part("NodeForm", **options))
    with pytest.raises(ValueError, match=gone):
        build(Strategy, old, origin="adapter_config.json")


def test_a_config_of_before_still_parses_and_one_line_says_the_new_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.chdir(REPOSITORY)
    before, form = FORMS["refined"]
    adapter = _part("KoRA", **before, readout=_part("LogitReadout", init="orthogonal"))
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"model": {"init_args": {"adapter": adapter}}}))
    found = parse(["fit", "--config", "configs/quickstart.yaml", "--config", str(path)]).resolved()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{path}: the options of KoRA's nodes are in node_form now: " in told
    assert yaml.safe_load(told.partition("now: ")[2]) == form
    resolved = found["model"]["init_args"]["adapter"]["init_args"]["node_form"]
    assert with_defaults(resolved) == with_defaults(form)


def test_each_new_form_is_told_wherever_it_stands() -> None:
    """In a list too, and none that has not changed."""
    (before, form), (_, other) = FORMS["refined"], FORMS["factors"]
    config = {"a": _part("KoRA", node_form=other), "b": [_part("KoRA", **before)]}
    told: list[Any] = []
    assert current(config, told.append)["b"] == [_part("KoRA", node_form=form)]
    assert told == [form]


@pytest.mark.parametrize("form", ["NodeForm", 3, ["x"], {"class_path": 3}, _part("NodeForm")])
@pytest.mark.parametrize("rank", [3, "x", {}, None])
def test_whatever_a_file_says_of_nodes_is_read_without_an_error_of_ours(
    form: Any, rank: Any
) -> None:
    made = _part("KoRA", node_form=form, rank=rank)
    assert with_defaults(made)["class_path"] == "kora.adapters.KoRA"
    assert with_defaults({**made, "init_args": form})


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
    del earlier["model"]["init_args"]["label_smoothing"]
    assert with_defaults(config) == with_defaults(earlier)
