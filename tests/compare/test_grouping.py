"""Runs are grouped by strategy, experiment, or any setting of their config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.compare.command import compare, load_runs
from kora.compare.grouping import brief, grouping
from kora.runs.results import Run, write_results
from tests.support.comparisons import run


def configured(root: Path, strategy: str, seed: int, accuracy: float, **model: Any) -> Run:
    """A run with the config.yaml that it would leave."""
    adapter = {"class_path": f"kora.adapters.{strategy}", "init_args": model.pop("adapter", {})}
    settings = {"adapter": adapter, "training": model}
    version = len(list(root.rglob("results.json")))
    made = run(strategy, seed, accuracy, version=version, settings=settings)
    folder = root / made.folder
    write_results(folder, made.result)
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}}
    config = {
        "experiment": "fewshot",
        "model": {
            "class_path": "kora.tasks.ClassificationTask",
            "init_args": {**model, "adapter": adapter, "optimizer": optimizer, "lr": 7},
        },
        "trainer": {"max_epochs": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return Run(folder, made.result)


@pytest.fixture
def sizes(tmp_path: Path) -> list[Run]:
    for seed in range(2):
        for size in (4, 8):
            configured(tmp_path, "KoRA", seed, 0.5 + size / 100, adapter={"d_comp": size})
        configured(tmp_path, "LinearProbe", seed, 0.4)
    return load_runs([tmp_path])[0]


@pytest.mark.parametrize("by", ["d_comp", "adapter.d_comp", "model.adapter.d_comp"])
def test_groups_are_the_values_of_a_setting(sizes: list[Run], by: str) -> None:
    result = compare(sizes, by=by)
    assert [(g.name, g.seeds) for g in result.groups] == [
        ("KoRA, d_comp=8", (0, 1)),
        ("KoRA, d_comp=4", (0, 1)),
        ("LinearProbe", (0, 1)),
    ]
    assert result.reference == "LinearProbe"


def test_the_strategy_is_left_out_where_it_is_the_same(sizes: list[Run]) -> None:
    only = [run for run in sizes if run.result.strategy.startswith("KoRA")]
    assert [g.name for g in compare(only, by="d_comp").groups] == ["d_comp=8", "d_comp=4"]


def test_several_settings_make_a_group_together(tmp_path: Path) -> None:
    for size, rate in ((4, 0.1), (8, 0.1), (8, 0.2)):
        configured(tmp_path, "KoRA", 0, 0.5, adapter={"d_comp": size}, head_lr=rate)
    runs, _ = load_runs([tmp_path])
    names = {g.name for g in compare(runs, by="d_comp,model.head_lr").groups}
    assert names == {"d_comp=4, head_lr=0.1", "d_comp=8, head_lr=0.1", "d_comp=8, head_lr=0.2"}
    notes = compare(runs, by="d_comp").notes
    assert any("2 versions" in note and "differ in training.head_lr" in note for note in notes)


def test_an_object_is_named_by_its_class(tmp_path: Path) -> None:
    for name in ("Sequential", "Attention"):
        composer = {"class_path": f"kora.adapters.{name}", "init_args": {}}
        configured(tmp_path, "KoRA", 0, 0.5, adapter={"composer": composer})
    runs, _ = load_runs([tmp_path])
    assert {g.name for g in compare(runs, by="composer").groups} == {
        "composer=Sequential",
        "composer=Attention",
    }
    assert brief({"class_path": "a.B", "init_args": {"c": [1, 2]}}) == "B(c=[1, 2])"


def test_without_a_config_the_record_says_as_much() -> None:
    adapter = {"class_path": "kora.adapters.KoRA", "init_args": {"d_comp": 4}}
    one = run("KoRA", 0, 0.5, settings={"adapter": adapter, "training": {"max_epochs": 3}})
    for by in ("model.adapter.d_comp", "trainer.max_epochs", "max_epochs"):
        key = by.rpartition(".")[2]
        assert grouping(by, [one])(one) == f"{key}={4 if key == 'd_comp' else 3}"


def test_an_unknown_setting_is_told_with_the_nearest(sizes: list[Run]) -> None:
    with pytest.raises(ValueError, match=r"'d_compp'.*Did you mean model\.adapter\.d_comp"):
        compare(sizes, by="d_compp")


def test_a_name_that_fits_several_settings_is_refused(sizes: list[Run]) -> None:
    with pytest.raises(ValueError, match=r"'lr'.*model\.lr or model\.optimizer\.lr"):
        compare(sizes, by="lr")


def test_a_config_that_cannot_be_read_is_named(sizes: list[Run]) -> None:
    file = sizes[0].folder / "config.yaml"
    file.write_text("a: [")
    with pytest.raises(RuntimeError, match=rf"{file}: cannot be read"):
        compare(sizes, by="d_comp")


def test_the_strategy_may_be_among_the_settings(tmp_path: Path) -> None:
    for rate in (0.1, 0.2):
        configured(tmp_path, "LinearProbe", 0, 0.5, head_lr=rate)
    names = {g.name for g in compare(load_runs([tmp_path])[0], by="strategy,head_lr").groups}
    assert names == {"LinearProbe, head_lr=0.1", "LinearProbe, head_lr=0.2"}
