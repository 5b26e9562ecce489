"""A metric over training images, seconds or parameters: one line a group, from all tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from kora.compare import figures_against
from kora.compare.command import compare_command
from kora.compare.comparison import Comparison, Group
from kora.runs.results import write_results
from tests.support.cli import kora
from tests.support.comparisons import depth, run


def table(images: int | None, means: dict[str, float], **changes: Any) -> Comparison:
    """A table of runs that had so many training images and took a second for each ten."""
    groups = tuple(
        Group(
            name=name, seeds=(0, 1), values=(mean, mean), mean=mean, std=0.0, half_width=0.02,
            trainable=1000, percent=1.0, fit_seconds=images / 10 if images else None,
        )
        for name, mean in means.items()
    )  # fmt: skip
    known: dict[str, Any] = {
        "title": f"few_{images}", "metric": "test/accuracy", "by": "strategy", "groups": groups,
        "baselines": {"chance": 0.01}, "reference": None, "backbone": "vit_nano", "notes": (),
        "protocol": {"sizes": {"train": images, "test": 100}} if images else {},
    }  # fmt: skip
    return Comparison(**(known | changes))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    found: list[Figure] = []
    save = figures_against.save

    def keep(figure: Figure, out: str | Path) -> Path:
        found.append(figure)
        return save(figure, out)

    monkeypatch.setattr(figures_against, "save", keep)
    return found


def lines(figure: Figure) -> dict[str, list[tuple[float, float]]]:
    """x and y of each line with a name."""
    (axis,) = figure.axes
    found = {}
    for container in axis.containers:
        line = container.lines[0]
        found[str(container.get_label())] = [tuple(point) for point in line.get_xydata()]
    return found


TABLES = [table(2000, {"LoRA": 0.5, "KoRA": 0.6}), table(500, {"LoRA": 0.3})]


@pytest.mark.parametrize(
    ("what", "few", "many"),
    [("images", 500, 2000), ("seconds", 50, 200), ("trainable", 1000, 1000)],
)
def test_a_line_joins_what_a_group_has_in_several_tables(
    what: str, few: float, many: float, drawn: list[Figure], tmp_path: Path
) -> None:
    path = figures_against.against(TABLES, what, tmp_path / "against.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    found = lines(figure)
    assert sorted(found["LoRA"]) == [(few, 0.3), (many, 0.5)]
    assert found["KoRA"] == [(many, 0.6)]
    (axis,) = figure.axes
    assert figures_against.AGAINST[what][0] == axis.get_xlabel()
    assert any(line.get_label() == "chance" for line in axis.lines)


def test_no_axis_of_a_share_goes_on_above_all(drawn: list[Figure], tmp_path: Path) -> None:
    figures_against.against([table(500, {"LoRA": 0.99})], "images", tmp_path / "a.png")
    (axis,) = drawn[0].axes
    assert 1 < axis.get_ylim()[1] < 1.05


def test_amounts_that_differ_by_much_are_on_a_logarithmic_axis(
    drawn: list[Figure], tmp_path: Path
) -> None:
    figures_against.against(TABLES, "images", tmp_path / "a.png")
    figures_against.against([*TABLES, table(9500, {"KoRA": 0.7})], "images", tmp_path / "b.png")
    assert [figure.axes[0].get_xscale() for figure in drawn] == ["linear", "log"]


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ([TABLES[0], table(1, {"LoRA": 1.0}, metric="test/rmse_m")], "accuracy and test/rmse_m"),
        ([table(None, {"LoRA": 0.5})], "no run says how many training images"),
    ],
)
def test_what_cannot_be_drawn_is_told(tables: list[Comparison], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        figures_against.against(tables, "images", tmp_path / "against.png")
    assert not list(tmp_path.iterdir())


def test_the_command_draws_it_beside_the_tables(tmp_path: Path) -> None:
    runs = [run("LoRA", seed, 0.5, experiment=name) for seed in (0, 1) for name in ("few", "many")]
    for one in runs:
        write_results(tmp_path / one.folder, one.result)
    out = tmp_path / "out"
    written = compare_command([tmp_path], out=out, against=["trainable"])
    assert out / "against_trainable.png" in written
    assert "![Against trainable](against_trainable.png)" in (out / "compare.md").read_text()


def test_without_a_folder_for_it_the_remedy_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    done = kora(capfd, "compare", "runs", "--against", "images")
    assert done.code == 2
    assert "say where with --out FOLDER" in done.err


def test_the_command_knows_all_that_can_be_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    done = kora(capfd, "compare", "--help")
    assert "--against {" + ",".join(figures_against.AGAINST) + "}" in done.out


def test_tables_of_several_metrics_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    for made in (run("LoRA", 0, 0.5), depth("LoRA", 0, 0.4)):
        write_results(tmp_path / made.folder, made.result)
    with pytest.raises(ValueError, match="--against draws one metric"):
        compare_command([tmp_path], out=tmp_path / "out", against=["seconds"])
    assert not (tmp_path / "out").exists()
