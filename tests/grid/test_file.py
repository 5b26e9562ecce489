"""Claims about grid files: what they combine, in which order, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from kora.grid.file import Grid, read_grid


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with four configs in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "more", "lora", "kora"):
        (tmp_path / f"{name}.yaml").write_text("{}\n")
    return tmp_path


def read(folder: Path, *overrides: str, **content: Any) -> Grid:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"base": "base.yaml", **content}, sort_keys=False))
    return read_grid(Path("grid.yaml"), overrides)


def test_jobs_are_every_combination_in_the_order_of_the_file(folder: Path) -> None:
    jobs = read(
        folder,
        vary={"model.head_lr": [0.1, 0.01], "config": ["lora.yaml", "kora.yaml"]},
        seeds=[0, 7],
    ).jobs()
    assert [job.name for job in jobs] == [
        "lora, head_lr=0.1, seed 0", "lora, head_lr=0.1, seed 7",
        "kora, head_lr=0.1, seed 0", "kora, head_lr=0.1, seed 7",
        "lora, head_lr=0.01, seed 0", "lora, head_lr=0.01, seed 7",
        "kora, head_lr=0.01, seed 0", "kora, head_lr=0.01, seed 7",
    ]  # fmt: skip
    assert jobs[3].args == (
        "--config", "base.yaml", "--config", "kora.yaml", "--model.head_lr=0.1",
        "--seed_everything=7",
    )  # fmt: skip


def test_files_come_first_then_options_for_all_then_what_varies(folder: Path) -> None:
    (job,) = read(
        folder,
        base=["base.yaml", "more.yaml"],
        vary={"config": ["lora.yaml"], "model.adapter.rank": [4]},
        set={"experiment": "mine"},
    ).jobs()
    assert job.args == (
        "--config", "base.yaml", "--config", "more.yaml", "--config", "lora.yaml",
        "--experiment=mine", "--model.adapter.rank=4", "--seed_everything=0",
    )  # fmt: skip


def test_without_vary_the_seeds_alone_make_the_runs(folder: Path) -> None:
    assert [job.name for job in read(folder, seeds=[3, 1]).jobs()] == ["seed 3", "seed 1"]


def test_named_groups_of_files_are_combined_in_the_order_of_the_file(folder: Path) -> None:
    jobs = read(
        folder,
        base=None,
        vary={
            "config.data": ["base.yaml", "more.yaml"],
            "config.strategy": ["lora.yaml", "kora.yaml"],
        },
        seeds=[0, 1],
    ).jobs()
    assert [job.name for job in jobs[:3]] == [
        "base, lora, seed 0", "base, lora, seed 1", "base, kora, seed 0",
    ]  # fmt: skip
    assert len(jobs) == 8
    assert jobs[7].args == (
        "--config", "more.yaml", "--config", "kora.yaml", "--seed_everything=1",
    )  # fmt: skip
    assert jobs[7].kind == "more, kora"


def test_a_value_of_a_group_may_be_several_files(folder: Path) -> None:
    one, two = read(folder, vary={"config.data": [["more.yaml", "lora.yaml"], "kora.yaml"]}).jobs()
    assert one.name == "more+lora, seed 0"
    assert one.args[:6] == (
        "--config", "base.yaml", "--config", "more.yaml", "--config", "lora.yaml",
    )  # fmt: skip
    assert two.args[:4] == ("--config", "base.yaml", "--config", "kora.yaml")


def test_what_a_search_found_for_files_adds_nothing_to_their_name(folder: Path) -> None:
    (folder / "best").mkdir()
    for name in ("more+lora", "kora"):
        (folder / "best" / f"{name}.yaml").write_text("{}\n")
    both, one = read(
        folder,
        vary={
            "config": [
                ["more.yaml", "lora.yaml", "best/more+lora.yaml"],
                ["kora.yaml", "best/kora.yaml"],
            ]
        },
    ).jobs()
    assert (both.name, one.name) == ("more+lora, seed 0", "kora, seed 0")
    assert both.args[6:8] == ("--config", "best/more+lora.yaml")


def test_files_of_one_name_in_two_folders_are_told_apart(folder: Path) -> None:
    files = ["lora.yaml", "sizes/small/lora.yaml", "sizes/large/lora.yaml", "kora.yaml"]
    for file in files[1:3]:
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text("{}\n")
    jobs = read(folder, vary={"config": files}).jobs()
    assert [job.kind for job in jobs] == ["lora", "small/lora", "large/lora", "kora"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (-1, "-1"),
        (1e-05, "1e-05"),
        ("100:200", "100:200"),
        ([1, 2], "[1, 2]"),
        ({"fraction": 0.5}, '{"fraction": 0.5}'),
    ],
)
def test_a_value_is_written_as_yaml_would_read_it(folder: Path, value: Any, text: str) -> None:
    (job,) = read(folder, set={"data.x": value}).jobs()
    assert f"--data.x={text}" in job.args
    if not isinstance(value, str | float):
        assert yaml.safe_load(text) == value


def test_a_command_can_be_copied_into_a_shell(folder: Path) -> None:
    (job,) = read(folder, set={"data.subset": {"fraction": 0.5}}).jobs()
    assert job.command == (
        "kora fit --config base.yaml '--data.subset={\"fraction\": 0.5}' --seed_everything=0"
    )


def test_overrides_win_over_set_and_keep_the_equals_signs_of_their_value(folder: Path) -> None:
    (job,) = read(folder, "a.b=1", "c=x=y", set={"a.b": 2, "d": 3}).jobs()
    assert job.args[2:] == ("--a.b=1", "--d=3", "--c=x=y", "--seed_everything=0")


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ({"base": None}, ["base is missing"]),
        ({"base": "nowhere.yaml"}, ["base", "'nowhere.yaml'", "no file"]),
        ({"base": []}, ["base is []", "at least one"]),
        ({"base": 3}, ["base is 3"]),
        ({"base": ["base.yaml", "base.yaml"]}, ["base has base.yaml twice"]),
        ({"sed": [1]}, ["unknown key 'sed'", "Did you mean 'seeds'?"]),
        ({"xyzzy": [1]}, ["unknown key 'xyzzy'", "base, vary, seeds, set"]),
        ({"seeds": []}, ["seeds is []"]),
        ({"seeds": 3}, ["seeds is 3", "list"]),
        ({"seeds": [0, 0]}, ["seeds has 0 twice"]),
        ({"seeds": [0, -1]}, ["seeds has -1", "whole numbers"]),
        ({"seeds": [2**32]}, ["seeds has 4294967296", "from 0 to 4294967295"]),
        ({"seeds": [True]}, ["seeds has True"]),
        ({"seeds": ["one"]}, ["seeds has 'one'"]),
        ({"vary": {"model.x": []}}, ["vary.model.x is []"]),
        ({"vary": {"model.x": 4}}, ["vary.model.x is 4", "list"]),
        ({"vary": {"model.x": [4, 4]}}, ["vary.model.x has 4 twice"]),
        ({"vary": {"config": ["lora.yaml", "lor.yaml"]}}, ["vary.config", "'lor.yaml'"]),
        ({"vary": {"config.x": [["lora.yaml", "lor.yaml"]]}}, ["vary.config.x", "'lor.yaml'"]),
        ({"vary": {"config.x": [[]]}}, ["vary.config.x is []"]),
        ({"vary": {"config.x": "lora.yaml"}}, ["vary.config.x is 'lora.yaml'", "list"]),
        ({"set": {"config.x": "lora.yaml"}}, ["'config.x'", "'base'"]),
        ({"vary": [1]}, ["vary is [1]", "table"]),
        ({"vary": {4: [1]}}, ["vary is {4", "option names"]),
        ({"vary": {"seed_everything": [1]}}, ["'seed_everything'", "'seeds'"]),
        ({"set": {"seed_everything": 1}}, ["'seed_everything'", "'seeds'"]),
        ({"set": {"config": "lora.yaml"}}, ["'config'", "'base'"]),
        ({"set": "x=1"}, ["set is 'x=1'", "table"]),
        ({"vary": {"a.b": [1]}, "set": {"a.b": 2}}, ["'a.b'", "'vary' too"]),
        ({"vary": {"a.b": [1]}, "set": {"a.init_args.b": 2}}, ["'a.init_args.b'", "'vary' too"]),
        ({"vary": {"a.b": [1], "a.init_args.b": [2]}}, ["'a.init_args.b'", "twice"]),
    ],
)
def test_a_mistake_names_the_file_and_the_key(
    folder: Path, content: dict[str, Any], fragments: list[str]
) -> None:
    with pytest.raises(ValueError, match=r"^grid\.yaml: ") as caught:
        read(folder, **content)
    for fragment in fragments:
        assert fragment in str(caught.value)


@pytest.mark.parametrize("text", ["a.b", "=1"])
def test_an_override_without_key_or_value_is_shown(folder: Path, text: str) -> None:
    with pytest.raises(ValueError, match=rf"--set {text}: expected key=value"):
        read(folder, text)


def test_an_override_of_what_varies_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'a\.b' cannot be set here"):
        read(folder, "a.b=1", vary={"a.b": [1, 2]})


@pytest.mark.parametrize("text", ["[1, 2]\n", "a: [\n", "", "word\n"])
def test_a_file_that_is_no_table_is_named(folder: Path, text: str) -> None:
    (folder / "grid.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"^grid\.yaml: "):
        read_grid(Path("grid.yaml"))


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^nowhere\.yaml: cannot be read"):
        read_grid(Path("nowhere.yaml"))


def test_what_a_file_says_twice_is_refused_by_line(folder: Path) -> None:
    (folder / "grid.yaml").write_text("base: base.yaml\nseeds: [0]\n\nseeds: [1]\n")
    with pytest.raises(ValueError, match=r"^grid\.yaml: 'seeds' is in line 2 and again in line 4"):
        read_grid(Path("grid.yaml"))
