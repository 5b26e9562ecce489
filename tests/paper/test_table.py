"""Claims about the table of the paper: what stands in each cell, and what is said of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kora.analysis.one_class import f1_of_one_class
from kora.compare.selection import load_runs
from kora.paper.checks import checks
from kora.paper.numbers import paper_tables
from kora.paper.table import PaperSheet, paper_sheet
from kora.runs.results import Run
from tests.support.comparisons import run, write

PUBLISHED = "paper_table2_kora_dcomp4"
HONEST = "tinyimagenet_transfer"


def adapted(d_comp: int = 4) -> dict[str, Any]:
    return {"adapter": {"class_path": "kora.adapters.KoRA", "init_args": {"d_comp": d_comp}}}


def classified(
    strategy: str, seed: int, accuracy: float, f1: float, experiment: str, **changes: Any
) -> Run:
    metrics = {"test/accuracy": accuracy, "test/weighted_f1": f1}
    return run(strategy, seed, accuracy, experiment=experiment, metrics=metrics, **changes)


def as_published(seed: int, accuracy: float, **changes: Any) -> Run:
    one = f1_of_one_class(accuracy)
    audit = {"problems": ["The test split holds one class only."]}
    values = {"audit": audit, "settings": adapted()} | changes
    return classified("KoRA-side", seed, accuracy, one, PUBLISHED, **values)


def sheet(root: Path, runs: Sequence[Run], table: str = "table2") -> PaperSheet:
    write(root, *runs)
    return paper_sheet(paper_tables()[table], load_runs([root])[0] if runs else [])


def cell(found: PaperSheet, method: str, metric: str) -> list[str]:
    (row,) = (row for row in found.cells() if row[:2] == [method, metric])
    return row[2:]


def test_without_runs_every_cell_says_which_command_fills_it(tmp_path: Path) -> None:
    found = sheet(tmp_path, [])
    assert found.commands() == [
        "kora grid --config configs/paper/table2.yaml",
        "kora fit --config configs/paper/as_published/table2_lora.yaml",
        "kora fit --config configs/paper/as_published/table2_kora_dcomp4.yaml",
        "kora fit --config configs/paper/as_published/table2_kora_dcomp8.yaml",
    ]
    assert cell(found, "LoRA", "accuracy") == ["71.04 %", "– [2]", "– [1]"]
    assert cell(found, "KoRA d_comp 8", "F1") == ["99.11 %", "– [4]", "– [1]"]
    # What the paper does not have, and what cannot be run as it was published.
    assert cell(found, "LinearProbe", "accuracy") == ["–", "–", "– [1]"]
    assert cell(found, "AdapterFusion", "F1") == ["63.64 %", "–", "– [1]"]
    table1 = sheet(tmp_path, [], "table1")
    assert cell(table1, "KoRA d_comp 8", "accuracy")[0] == "84.19 %"
    assert cell(table1, "KoRA d_comp 8", "trainable")[0] == "2.18 %"


def test_each_cell_has_the_mean_and_interval_of_its_own_runs(tmp_path: Path) -> None:
    honest = [
        classified("KoRA", seed, accuracy, 0.2, HONEST, settings=adapted(d_comp))
        for d_comp, values in ((4, (0.2, 0.3)), (8, (0.5, 0.5)))
        for seed, accuracy in enumerate(values)
    ]
    for place, one in enumerate(honest):  # versions of one folder
        honest[place] = Run(one.folder.with_name(f"version_{place}"), one.result)
    found = sheet(tmp_path, [*honest, as_published(0, 0.9)])
    # t(0.975, 1) = 12.706; s of (0.2, 0.3) is 0.0707, over sqrt(2) 0.05
    assert cell(found, "KoRA d_comp 4", "accuracy") == [
        "97.37 %",
        "90.00 % (1)",
        "25.00 % ± 63.53 (2)",
    ]
    assert cell(found, "KoRA d_comp 8", "accuracy")[2] == "50.00 % ± 0.00 (2)"
    assert cell(found, "KoRA-side d_comp 4", "accuracy")[2] == "– [1]"
    legend = " ".join(found.legend())
    assert "honest: Tiny · vit_nano · 50 train · 20 val · 100 test" in legend
    assert "as published, here: Tiny" in legend


def test_published_pairs_and_runs_are_held_against_the_f1_of_one_class(tmp_path: Path) -> None:
    honest = [classified("LoRA", seed, 0.4, 0.35, HONEST) for seed in (0, 1)]
    said = " ".join(checks(sheet(tmp_path, [as_published(0, 0.9), as_published(1, 0.3), *honest])))
    assert "to the digit, in 4 of 4 rows (0.7104 -> 0.8307, 0.4667 -> 0.6364" in said
    assert "As published, here: F1 is 2a/(1+a) in 2 of 2 runs" in said
    assert "Honest runs: F1 is 2a/(1+a) in 0 of 2 runs; the distance is 0.22 to 0.22" in said
    assert "The audit of 2 of 2 runs as published: The test split holds one class only." in said
    assert "sees no image" in said


def test_a_run_as_published_whose_f1_is_another_is_counted_as_such(tmp_path: Path) -> None:
    odd = classified("KoRA-side", 0, 0.9, 0.9, PUBLISHED, settings=adapted())
    assert "in 0 of 1 runs" in " ".join(checks(sheet(tmp_path, [odd])))


def test_depth_in_metres_is_held_against_the_inequality(tmp_path: Path) -> None:
    said = " ".join(checks(sheet(tmp_path, [], "table3")))
    assert "RMSE 0.28 with AbsRel 0.56 cannot both be in metres" in said
    assert "2.0 a metre or more" in said


def test_the_share_of_parameters_is_compared_as_it_was_printed(tmp_path: Path) -> None:
    runs = [
        run("LoRA", 0, 0.9, experiment="paper_table1_lora",
            parameters={"trainable": 1_270_692, "percent": 1.447}),
        run("KoRA-side", 0, 0.8, experiment="paper_table1_kora_dcomp4",
            parameters={"trainable": 1, "percent": 10.2}, settings=adapted()),
    ]  # fmt: skip
    found = sheet(tmp_path, runs, "table1")
    assert "to the digit in 1 of 2 rows" in " ".join(checks(found))
    assert cell(found, "LoRA", "trainable")[:2] == ["1.45 %", "1.447 % (1)"]


def test_runs_that_must_not_be_mixed_are_refused_and_strays_left_out(tmp_path: Path) -> None:
    other = {"dataset": "Other", "sizes": {"test": 9}}
    two = [as_published(0, 0.9), as_published(1, 0.9, protocol=other)]
    with pytest.raises(ValueError, match=r"differ in more than .*(\n.*)*protocol.dataset"):
        sheet(tmp_path / "two", two)
    three = [*two, as_published(2, 0.8)]
    found = sheet(tmp_path / "three", three)
    assert cell(found, "KoRA d_comp 4", "accuracy")[1].endswith("(2)")
    assert any("left out, unlike the other 2 runs" in note for note in found.notes)


def test_honest_runs_of_several_kinds_in_one_row_are_named_and_not_averaged(tmp_path: Path) -> None:
    kinds = []
    for version, alpha in enumerate((1.0, 2.0)):
        settings = adapted()
        settings["adapter"]["init_args"]["alpha"] = alpha
        made = classified("KoRA", 0, 0.5, 0.4, HONEST, settings=settings, version=version)
        kinds.append(made)
    found = sheet(tmp_path, kinds)
    assert cell(found, "KoRA d_comp 4", "accuracy")[2] == "– [1]"
    (note,) = found.notes
    assert "KoRA (alpha=1.0); KoRA (alpha=2.0)" in note


def test_a_baseline_under_the_name_of_what_was_published_is_not_averaged_with_it(
    tmp_path: Path,
) -> None:
    baseline = classified("LinearProbe", 0, 0.1, 0.1, PUBLISHED)
    found = sheet(tmp_path, [as_published(0, 0.9), as_published(1, 0.8), baseline])
    assert cell(found, "KoRA d_comp 4", "accuracy")[1] == "– [3]"
    assert any("(KoRA-side; LinearProbe), as published, of which" in note for note in found.notes)


# -- figure 4 -------------------------------------------------------------------------------------


def write_cka(folder: Path, middle_to_last: float, *, biased: float, features: str = "cls") -> None:
    layers = ["embedding", *(f"block {n}" for n in range(12)), "final"]

    def comparison(shift: float) -> dict[str, Any]:
        matrices = {}
        pairs = (("cka", middle_to_last), ("biased_cka_of_32_images", biased))
        for key, value in pairs:
            matrix = [[0.0] * 14 for _ in range(14)]
            matrix[1 + 6][1 + 11] = value + shift
            matrices[key] = matrix
        return {"rows": {"layers": layers}, "columns": {"layers": layers}, **matrices}

    record = {
        "settings": {"features": features},
        "comparisons": {"within_run": comparison(0.0), "within_frozen": comparison(0.0)},
    }
    (folder / "cka").mkdir(parents=True)
    (folder / "cka" / "cka.json").write_text(json.dumps(record))


def test_the_figure_reads_blocks_6_and_11_of_12_biased_and_unbiased(tmp_path: Path) -> None:
    made = run("KoRA-side", 0, 0.8, experiment="paper_table1_kora_dcomp4", settings=adapted())
    write_cka(tmp_path / made.folder, 0.44, biased=0.77)
    found = sheet(tmp_path, [made], "figure4")
    assert cell(found, "KoRA d_comp 4", "biased 32") == ["0.76", "0.770 (1)", "– [2]"]
    assert cell(found, "KoRA d_comp 4", "unbiased") == ["–", "0.440 (1)", "– [2]"]
    said = " ".join(checks(found))
    assert "is that of the frozen backbone in 1 of 1 runs" in said
    assert "for features of width 768 that have nothing in common" in said


def test_a_run_without_cka_of_cls_tokens_gets_the_command_for_it(tmp_path: Path) -> None:
    one, two = (
        run("KoRA-side", 0, 0.8, experiment=f"paper_table1_kora_dcomp{d}", settings=adapted(d))
        for d in (4, 8)
    )
    write_cka(tmp_path / two.folder, 0.4, biased=0.7, features="mean")
    found = sheet(tmp_path, [one, two], "figure4")
    for made in (one, two):
        assert f"kora cka {tmp_path / made.folder} --features cls" in found.commands()
    three = run("KoRA-side", 1, 0.8, experiment="paper_table1_kora_dcomp8", settings=adapted(8))
    write_cka(tmp_path / three.folder, 0.4, biased=0.7, features="mean")
    notes = " ".join(sheet(tmp_path, [one, two, three], "figure4").notes)
    assert f"{three.folder}: its CKA is not of CLS tokens, as the figure is: kora cka" in notes


def test_a_damaged_record_of_cka_is_named(tmp_path: Path) -> None:
    made = run("KoRA-side", 0, 0.8, experiment="paper_table1_kora_dcomp4", settings=adapted())
    (tmp_path / made.folder / "cka").mkdir(parents=True)
    (tmp_path / made.folder / "cka" / "cka.json").write_text('{"comparisons": {')
    with pytest.raises(RuntimeError, match=r"cka.json: damaged.*kora cka .*version_0 --features"):
        sheet(tmp_path, [made], "figure4")
