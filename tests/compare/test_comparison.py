import copy
import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from kora.compare.command import compare, compare_command, load_runs
from kora.compare.comparison import to_csv
from kora.runs.config import with_defaults
from kora.runs.results import Run, write_results
from kora.runs.search import config_hash
from tests.support.comparisons import FILES, PROTOCOL, run, screen, write
from tests.support.stored_config import CONFIG


def test_mean_std_and_interval_are_those_of_student() -> None:
    (group,) = compare([run("LoRA", k, v) for k, v in enumerate((0.1, 0.2, 0.3))]).groups
    assert group.mean == pytest.approx(0.2)
    assert group.std == pytest.approx(0.1)
    # t(0.975, 2 degrees of freedom) = 4.303 in any printed table; over sqrt(3)
    assert group.half_width == pytest.approx(0.1 * 4.302653 / 3**0.5, abs=1e-7)
    assert group.fit_seconds == 11.0


def test_one_seed_has_no_interval_and_that_is_said() -> None:
    result = compare([run("LoRA", 0, 0.5)])
    assert result.groups[0].std is result.groups[0].half_width is None
    assert "One seed only: LoRA" in result.notes[-1]
    _, rows = result.cells()
    assert rows[0][1:5] == ["1", "50.00 %", "–", "–"]


def test_differences_are_paired_on_common_seeds_only() -> None:
    probe = [run("LinearProbe", k, v) for k, v in ((0, 0.3), (1, 0.4), (2, 0.5))]
    lora = [run("LoRA", k, v) for k, v in ((1, 0.5), (2, 0.64), (3, 0.1))]
    lone = [run("KoRA", 9, 0.9)]
    groups = {group.name: group for group in compare(probe + lora + lone).groups}
    difference = groups["LoRA"].difference
    assert difference is not None
    assert difference.n == 2
    assert difference.mean == pytest.approx(0.12)
    # s of (0.10, 0.14) is 0.0282843; t(0.975, 1) = 12.7062
    assert difference.half_width == pytest.approx(12.7062 * 0.0282843 / 2**0.5, rel=1e-5)
    assert groups["KoRA"].difference is None
    assert groups["LinearProbe"].difference is None


def test_means_and_order_are_over_the_seeds_that_all_rows_have() -> None:
    # Seed 1 is an easy one, which LoRA alone has: over all its seeds LoRA would come first.
    runs = [run("LoRA", 0, 0.40), run("LoRA", 1, 0.60), run("KoRA", 0, 0.45)]
    runs += [run("LinearProbe", 0, 0.3), run("LinearProbe", 1, 0.5)]
    result = compare(runs)
    assert [group.name for group in result.groups] == ["KoRA", "LoRA", "LinearProbe"]
    heads, rows = result.cells()
    lora = dict(zip(heads, rows[1], strict=True))
    assert lora["seeds"] == "1 of 2"
    assert lora["mean, common seeds"] == "40.00 %"
    assert lora["all its seeds"].startswith("50.00 %")
    assert lora["minus LinearProbe"].startswith("+10.00 ± "), "on the seeds that the two share"
    assert any(
        "seeds that all rows have: 0." in note
        and "LoRA 0, 1 (50.00 %)" in note
        and "KoRA 0 (45.00 %)" in note
        for note in result.notes
    )
    (row,) = (r for r in csv.DictReader(io.StringIO(to_csv([result]))) if r["strategy"] == "LoRA")
    assert (row["mean"], row["mean_seeds"], row["mean_of_all_seeds"]) == ("0.4", "0", "0.5")


def test_rows_that_share_no_seed_are_marked() -> None:
    result = compare([run("LoRA", 0, 0.4), run("KoRA", 1, 0.5)])
    assert "mean, own seeds" in result.cells()[0]
    assert any("share no seed" in note for note in result.notes)


def test_rows_of_the_same_seeds_need_no_mark() -> None:
    result = compare([run("LoRA", k, 0.4) for k in (1, 0)] + [run("KoRA", k, 0.5) for k in (0, 1)])
    assert result.common_seeds is None
    assert "mean" in result.cells()[0]


def test_every_row_that_is_compared_has_a_verdict_in_words(tmp_path: Path) -> None:
    runs = [run("LinearProbe", k, 0.30 + k / 100) for k in range(3)]
    runs += [run("LoRA", k, 0.40 + k / 99) for k in range(3)]
    runs += [run("KoRA", k, value) for k, value in enumerate((0.2, 0.5, 0.35))]
    words = {g.name: g.verdict and g.verdict.word for g in compare(runs).groups}
    assert words == {"LoRA": "ahead", "KoRA": "not told apart", "LinearProbe": None}
    write(tmp_path, *runs)
    console = Console(width=400, record=True, file=io.StringIO())
    written = compare_command([tmp_path], out=tmp_path / "out", console=console)
    texts = [console.export_text(), *(f.read_text() for f in written[:4] if f.suffix != ".tex")]
    for text in (texts[0], texts[1], texts[3]):
        assert "KoRA and LinearProbe are not told apart" in text
        assert "LoRA is ahead of LinearProbe" in text
    assert "ahead" in texts[2]


def test_equal_differences_without_test_images_tell_nothing_of_other_seeds() -> None:
    runs = [run("LinearProbe", k, 0.30 + k / 50) for k in range(2)]
    runs += [run("LoRA", k, 0.32 + k / 50) for k in range(2)]  # an image of 50 more, twice
    verdict = compare(runs).groups[0].verdict
    assert verdict is not None
    assert verdict.word == "not told apart"
    assert "it is equal for all 2 seeds, so their spread is not known" in verdict.sentence


def test_the_newest_version_counts_also_where_older_ones_are_more(tmp_path: Path) -> None:
    changed = {"training": {"max_epochs": 9}}
    write(
        tmp_path,
        *(run("LoRA", 0, 0.5, version=k, created=f"2026-01-0{k + 1}") for k in (0, 1)),
        run("LoRA", 0, 0.9, version=2, created="2026-01-03", settings=changed),
    )
    console = Console(width=400, record=True, file=io.StringIO())
    compare_command([tmp_path], console=console)
    text = console.export_text()
    assert "90.00 %" in text
    assert "LoRA, seed 0: 3 versions" in text


def test_the_best_group_comes_first_by_accuracy_and_by_loss() -> None:
    runs = [run("A", 0, 0.2), run("B", 0, 0.6)]
    for metric in ("test/accuracy", "test/loss"):
        assert [group.name for group in compare(runs, metric=metric).groups] == ["B", "A"]


def test_chance_and_majority_are_rows_where_the_metric_has_them() -> None:
    result = compare([run("LoRA", 0, 0.5)])
    _, rows = result.cells()
    assert [row[:3] for row in rows[1:]] == [
        ["majority class", "", "12.00 %"],
        ["chance", "", "10.00 %"],
    ]
    assert not compare([run("LoRA", 0, 0.5)], metric="test/loss").baselines


def test_of_several_versions_the_newest_counts_and_that_is_said() -> None:
    old = run("LoRA", 0, 0.1, version=10, parameters={"trainable": 7})
    new = run("LoRA", 0, 0.7, version=2, created="2026-01-02T00:00:00+00:00")
    result = compare([new, old])
    assert result.groups[0].values == (0.7,)
    assert "2 versions" in result.notes[0]
    assert "version_2 is the newest" in result.notes[0]
    assert "differ" not in result.notes[0]
    longer = run("LoRA", 0, 0.7, version=3, settings=settings(8, epochs=9))
    note = compare([longer, run("LoRA", 0, 0.5, settings=settings(8))]).notes[0]
    assert "They differ in training.max_epochs." in note
    tie = [run("LoRA", 0, v / 100, version=v) for v in (9, 10)]  # the same second
    assert compare(tie).groups[0].values == (0.1,)


def test_seeds_and_the_place_of_the_weights_may_differ() -> None:
    elsewhere = {"name": "vit_nano", "weights": "/b/w.safetensors", "sha256": "b0"}
    runs = [run("LoRA", 0, 0.5), run("LoRA", 1, 0.5, backbone=elsewhere)]
    assert compare(runs).groups[0].seeds == (0, 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"protocol": {**PROTOCOL, "sizes": {"train": 500, "val": 20, "test": 100}}},
            r"protocol\.sizes\.train: 500 in \S*LoRA/seed1\S*; 50 in \S*LoRA/seed0\S* and 1 more",
        ),
        ({"protocol": {**PROTOCOL, "data_sha256": "d1"}}, r"protocol\.data_sha256: 'd1'"),
        ({"protocol": {**PROTOCOL, "subset": None}}, r"protocol\.subset: None in"),
        ({"backbone": {"name": "vit_nano", "sha256": "b1"}}, r"backbone\.sha256: 'b1' in"),
        ({"stage": "test"}, "stage: 'test' in"),
        ({"parameters": {"trainable": 2000}}, r"parameters\.trainable: (1000|2000) in"),
    ],
)
def test_a_mixture_is_refused_and_names_run_and_key(changes: dict[str, Any], words: str) -> None:
    runs = [run("LoRA", 0, 0.5), run("LinearProbe", 0, 0.4), run("LoRA", 1, 0.5, **changes)]
    with pytest.raises(ValueError, match=words):
        compare(runs)


def test_by_experiment_compares_settings_of_one_strategy_but_not_several_in_a_group() -> None:
    runs = [run("KoRA", 0, 0.5), run("KoRA", 0, 0.6, experiment="inject")]
    assert [g.name for g in compare(runs, by="experiment").groups] == ["inject", "fewshot"]
    with pytest.raises(ValueError, match=r"strategy: 'KoRA' in .* 'LoRA' in"):
        compare([*runs, run("LoRA", 1, 0.1)], by="experiment")


@pytest.mark.parametrize(
    ("runs", "options", "words"),
    [
        ([], {}, "no run"),
        ([run("LoRA", 0, 0.5)], {"by": "colour"}, "'colour', which is no setting"),
        ([run("LoRA", 0, 0.5)], {"reference": "KoRA"}, "'KoRA' is none of the groups: LoRA"),
        ([run("LoRA", 0, 0.5)], {"metric": "test/acc"}, "'test/acc'; they have: test/accuracy"),
        ([run("LoRA", 0, 0.5, metrics={})], {}, "has test/accuracy .*; they have no metric"),
    ],
)
def test_wrong_arguments_are_named(runs: list[Run], options: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare(runs, **options)


def test_a_run_without_the_metric_is_left_out_and_named() -> None:
    result = compare([run("LoRA", 0, 0.5), run("KoRA", 0, 0.5, metrics={"test/loss": 1.0})])
    assert [group.name for group in result.groups] == ["LoRA"]
    assert any("KoRA/seed0" in note and "no test/accuracy" in note for note in result.notes)


def test_a_run_whose_metric_is_no_number_is_left_out_and_named() -> None:
    diverged = run("KoRA", 0, float("nan"))
    result = compare([run("LoRA", 0, 0.5), diverged])
    assert [group.name for group in result.groups] == ["LoRA"]
    assert any("KoRA/seed0" in note and "finite number" in note for note in result.notes)
    with pytest.raises(ValueError, match="finite number"):
        compare([diverged])


def test_differences_refer_to_the_group_that_is_named() -> None:
    runs = [run("LoRA", 0, 0.5), run("KoRA", 0, 0.6), run("LinearProbe", 0, 0.3)]
    result = compare(runs, reference="LoRA")
    assert result.cells()[0][5] == "minus LoRA"
    assert [g.difference and round(g.difference.mean, 3) for g in result.groups] == [
        0.1,
        None,
        -0.2,
    ]


def test_without_a_reference_there_are_no_differences_and_that_is_said() -> None:
    runs = [run("LoRA", k, 0.5) for k in range(2)] + [run("KoRA", k, 0.6) for k in range(2)]
    result = compare(runs)
    assert result.reference is None
    assert result.notes[-1] == (
        "No differences: there is no LinearProbe. Name a row with --reference."
    )


def test_seconds_are_the_mean_and_memory_the_largest_of_the_seeds() -> None:
    runs = [run("LoRA", k, 0.5, peak_memory_mib=1000.0 + k) for k in range(3)]
    heads, rows = compare([*runs, run("KoRA", 0, 0.1)]).cells()
    assert heads[-3:] == ["trainable", "fit", "peak memory"]
    assert rows[0][-3:] == ["1,000", "11 s", "1,002 MiB"]
    assert rows[1][-1] == "–"
    assert "peak memory" not in compare([run("KoRA", 0, 0.1)]).cells()[0]


def test_settings_of_training_that_differ_are_told() -> None:
    longer = run("LoRA", 0, 0.5, settings=settings(8, epochs=20))
    result = compare([longer, run("KoRA", 0, 0.4, settings=settings(8)), run("VPT", 0, 0.3)])
    assert "Training settings" not in " ".join(compare([longer]).notes)
    assert any("max_epochs is 20 in LoRA, 1 in KoRA" in note for note in result.notes)


def test_markdown_and_csv_carry_the_numbers(tmp_path: Path) -> None:
    runs = [run("LinearProbe", k, 0.3 + k / 100) for k in range(3)]
    write(tmp_path, *runs, *(run("LoRA", k, 0.4) for k in range(3)))
    written = compare_command([tmp_path], out=tmp_path / "out", console=screen())
    assert [path.name for path in written] == FILES
    markdown = written[0].read_text()
    assert (
        "| LoRA | 3 | 40.00 % | ± 0.00 | 0.00 | +9.00 ± 2.48 | ahead | 1,000 | 11 s |" in markdown
    )
    assert "Tiny · vit_nano · 50 train · 20 val · 100 test · 5 a class" in markdown
    assert "(comparison.png)" in markdown
    rows = list(csv.DictReader(io.StringIO(written[2].read_text())))
    assert [row["strategy"] for row in rows] == ["LoRA", "LinearProbe", "majority class", "chance"]
    assert float(rows[1]["mean"]) == pytest.approx(0.31)
    assert float(rows[1]["ci95_high"]) - 0.31 == pytest.approx(0.01 * 4.302653 / 3**0.5)
    assert float(rows[0]["difference"]) == pytest.approx(0.09)
    assert rows[0]["seeds"] == "0 1 2"
    assert rows[3]["trainable"] == ""


def test_without_out_a_table_is_printed_and_no_file_is_written(tmp_path: Path) -> None:
    write(tmp_path, run("LoRA", 0, 0.5))
    before = sorted(tmp_path.rglob("*"))
    console = screen()
    assert compare_command([tmp_path], console=console) == []
    assert sorted(tmp_path.rglob("*")) == before
    assert "50.00 %" in console.export_text()


def test_each_experiment_and_stage_has_its_own_table_and_picture(tmp_path: Path) -> None:
    write(
        tmp_path,
        run("LoRA", 0, 0.5),
        run("LoRA", 0, 0.7, experiment="fewshot/source", protocol={"dataset": "CIFAR"}),
        run("LoRA", 0, 0.6, stage="test", version=1),
    )
    console = screen()
    written = compare_command([tmp_path], out=tmp_path / "out", console=console)
    text = console.export_text()
    for title in ("fewshot: test/accuracy", "fewshot/source: test", "fewshot (test only): test"):
        assert title in text
    assert {path.name for path in written if path.suffix == ".png"} == {
        "comparison_fewshot.png",
        "comparison_fewshot_source.png",
        "comparison_fewshot_test_only.png",
    }


def test_bad_runs_get_a_word_each_and_the_rest_is_compared(tmp_path: Path) -> None:
    write(tmp_path, run("LoRA", 0, 0.5), run("LoRA", 1, 0.9, finished=False))
    seeds = tmp_path / "runs" / "fewshot" / "LoRA"
    (seeds / "seed2" / "version_0").mkdir(parents=True)
    for version, content in ((1, '{"schema": 1, '), (2, '{"schema": 99}')):
        (seeds / "seed2" / f"version_{version}").mkdir()
        (seeds / "seed2" / f"version_{version}" / "results.json").write_text(content)
    runs, notes = load_runs([tmp_path, tmp_path / "nowhere"])
    assert [r.result.seed for r in runs] == [0]
    text = "\n".join(notes)
    for words in (
        "seed1/version_0: was stopped",
        "seed2/version_0: has no results.json (unfinished)",
        "damaged",
        "schema version is 99",
        "nowhere: no such folder",
    ):
        assert words in text
    console = screen()
    compare_command([tmp_path, tmp_path / "nowhere"], console=console)
    said = " ".join(console.export_text().split())  # a long path breaks a line
    assert "50.00 %" in said
    assert "no such folder" in said


NO_SUM = {"record_sha256": None}


@pytest.mark.parametrize(
    "changes",
    [
        {"metrics": {"test/accuracy": 0.95}},
        {"strategy": ["LoRA"], **NO_SUM},
        {"settings": None, **NO_SUM},
        {"seed": [], **NO_SUM},
        {"baselines": {"chance": None}, **NO_SUM},
    ],
)
def test_a_damaged_record_is_named_and_the_rest_is_compared(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    write(tmp_path, *(run("LoRA", seed, 0.45) for seed in range(3)))
    path = tmp_path / "runs/fewshot/LoRA/seed1/version_0/results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    console = screen()
    compare_command([tmp_path], console=console)
    said = "".join(console.export_text().split())
    assert f"{path}:" in said
    assert "45.00%" in said
    assert "61.67%" not in said


def test_nothing_to_compare_names_every_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run to compare(.|\n)*nowhere: no such folder"):
        compare_command([tmp_path / "nowhere"], console=screen())


def test_a_run_unlike_most_is_left_out_with_what_differs_and_the_rest_compared(
    tmp_path: Path,
) -> None:
    other = {**PROTOCOL, "data_sha256": "d1", "subset": {"per_class": 1}}
    write(
        tmp_path,
        *(run(strategy, k, 0.5) for strategy in ("LoRA", "KoRA") for k in (0, 1)),
        run("LoRA", 2, 0.9, protocol=other),
        run("KoRA", 2, 0.9, backbone={"name": "vit_nano", "sha256": "b1"}),
        run("LoRA", 3, 0.9, settings={"training": {"max_epochs": 9}}),
    )
    console = Console(width=400, record=True, file=io.StringIO())
    compare_command([tmp_path], console=console)
    text = console.export_text()
    assert text.count("50.00 %") == 2
    assert "LoRA/seed2/version_0: left out, unlike the other 5 runs: protocol.subset" in text
    assert "protocol.data_sha256 is 'd1', not 'd0'" in text
    assert "KoRA/seed2/version_0: left out, unlike the other 5 runs: backbone.sha256 is" in text
    assert "LoRA/seed3/version_0: left out, unlike the other 2 runs: settings.training.max" in text


def test_a_run_that_is_named_twice_is_one(tmp_path: Path) -> None:
    write(tmp_path, run("LoRA", 0, 0.5))
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    runs, notes = load_runs([tmp_path, tmp_path / "runs/fewshot", tmp_path / "link"])
    assert len(runs) == 1
    assert not notes


def test_a_mixed_experiment_does_not_hide_the_others(tmp_path: Path) -> None:
    other = {**PROTOCOL, "data_sha256": "d1"}
    mixed = [run("LoRA", 0, 0.1, experiment="x"), run("A", 0, 0.2, experiment="x", protocol=other)]
    write(tmp_path, run("LoRA", 0, 0.5), *mixed)
    console = screen()
    compare_command([tmp_path], console=console)
    text = console.export_text()
    assert "50.00 %" in text
    assert "protocol.data_sha256: 'd" in text


def settings(rank: int, *, epochs: int = 1) -> dict[str, Any]:
    adapter = {"class_path": "kora.adapters.LoRA", "init_args": {"rank": rank, "alpha": 1.0}}
    return {"adapter": adapter, "training": {"max_epochs": epochs}}


def test_one_strategy_with_other_arguments_is_another_row(tmp_path: Path) -> None:
    write(
        tmp_path,
        run("LoRA", 0, 0.5, settings=settings(8)),
        run("LoRA", 0, 0.4, version=1, settings=settings(2)),
    )
    runs, _ = load_runs([tmp_path])
    assert [(g.name, g.mean) for g in compare(runs).groups] == [
        ("LoRA (rank=8)", 0.5),
        ("LoRA (rank=2)", 0.4),
    ]


def test_runs_from_before_an_option_was_there_are_of_the_strategy_at_its_default(
    tmp_path: Path,
) -> None:
    form = {"class_path": "kora.adapters.NodeForm", "init_args": {"norm": True, "direct": True}}
    late = with_defaults(form)
    late["init_args"]["init"] = "zero"
    for seed, node_form in enumerate((form, with_defaults(form), late)):
        adapter = {
            "class_path": "kora.adapters.KoRA",
            "init_args": {"rank": 4, "node_form": node_form},
        }
        write(tmp_path, run("KoRA", seed, 0.5, settings={"adapter": adapter}))
    old, new, other = (each.result.strategy for each in load_runs([tmp_path])[0])
    assert old == new != other
    assert "init=zero" in other


def test_runs_that_trained_differently_are_not_averaged(tmp_path: Path) -> None:
    runs = [run("LoRA", k, 0.5, settings=settings(8, epochs=k + 1)) for k in range(2)]
    with pytest.raises(ValueError, match=r"settings\.training\.max_epochs: 1 in .*; 2 in "):
        compare(runs)


def test_a_run_of_an_earlier_version_is_averaged_where_only_later_options_are_missing(
    tmp_path: Path,
) -> None:
    now: dict[str, Any] = with_defaults(CONFIG)  # with all options, as a run resolves it
    earlier = copy.deepcopy(now)
    del earlier["model"]["init_args"]["head_init"]
    records = (
        {"training": {"max_epochs": 7}},
        {"training": {"max_epochs": 7, "head_init": "default"}},
    )
    made = [
        run("LoRA", k, 0.5, settings=record, config_sha256=config_hash(config))
        for k, (record, config) in enumerate(zip(records, (earlier, now), strict=True))
    ]
    write(tmp_path, *made)
    with pytest.raises(ValueError, match=r"settings\.training\.head_init: absent in "):
        compare(load_runs([tmp_path])[0])
    for one, config in zip(made, (earlier, now), strict=True):
        (tmp_path / one.folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert [group.mean for group in compare(load_runs([tmp_path])[0]).groups] == [0.5]
    changed = {**earlier, "trainer": {**earlier["trainer"], "max_epochs": 9}}
    (tmp_path / made[0].folder / "config.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(ValueError, match=r"settings\.training\.head_init: absent in "):
        compare(load_runs([tmp_path])[0])


def test_a_name_that_a_spreadsheet_would_compute_is_text_there_and_numbers_stay() -> None:
    formula = '=HYPERLINK("x")'
    runs = [run(name, k, 0.5 - k / 10) for name in (formula, "LinearProbe") for k in range(2)]
    runs += [run("LoRA", k, 0.3) for k in range(2)]
    rows = {row["strategy"]: row for row in csv.DictReader(io.StringIO(to_csv([compare(runs)])))}
    assert {f"'{formula}", "LinearProbe", "LoRA"} <= set(rows)
    assert float(rows["LoRA"]["difference"]) == pytest.approx(-0.15)


def test_runs_are_found_behind_links_and_not_inside_other_runs(tmp_path: Path) -> None:
    real = tmp_path / "real"
    write(real, run("LoRA", 0, 0.5))
    copy = real / "runs/fewshot/LoRA/seed1/version_0/wandb/files"
    copy.mkdir(parents=True)
    write_results(copy, run("LoRA", 1, 0.6).result)  # W&B's copy of a run that lost its record
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/there").symlink_to(real, target_is_directory=True)
    (real / "back").symlink_to(tmp_path, target_is_directory=True)
    runs, notes = load_runs([tmp_path / "linked"])
    assert [one.result.seed for one in runs] == [0]
    assert len([note for note in notes if "(unfinished)" in note]) == 1


def test_a_name_that_is_no_utf8_is_escaped_in_the_files(tmp_path: Path) -> None:
    write(tmp_path / os.fsdecode(b"\xff"), run("LoRA", 0, 0.5))
    compare_command([tmp_path], out=tmp_path / "out", console=screen())
    assert "\\udcff" in (tmp_path / "out/compare.csv").read_text(encoding="utf-8")


def test_experiments_of_similar_names_have_pictures_of_their_own(tmp_path: Path) -> None:
    for name in ("a b", "a_b", "a+b"):
        write(tmp_path, run("LoRA", 0, 0.5, experiment=name))
    written = compare_command([tmp_path], out=tmp_path / "out", console=screen())
    pictures = sorted(path.name for path in written if path.suffix == ".png")
    assert pictures == ["comparison_a_b.png", "comparison_a_b_2.png", "comparison_a_b_3.png"]
    text = (tmp_path / "out/compare.md").read_text()
    assert all(f"({name})" in text for name in pictures)


def test_a_place_that_is_a_file_is_refused_and_a_home_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, run("LoRA", 0, 0.5))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out .*file is a file; name a folder"):
        compare_command([tmp_path], out=tmp_path / "file", console=screen())
    compare_command([tmp_path], out="~/there", console=screen())
    assert (tmp_path / "there/compare.html").is_file()


def test_a_note_on_another_stage_names_it(tmp_path: Path) -> None:
    other = run("LoRA", 0, 0.5, stage="validate", metrics={"val/loss": 1.0}, version=1)
    write(tmp_path, run("LoRA", 0, 0.5), other)
    console = screen()
    compare_command([tmp_path], console=console)
    assert "fewshot (validate only): No run has test/accuracy" in console.export_text()
