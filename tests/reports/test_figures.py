from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kora.reports import figures
from tests.support.pixels import colours, size

RNG = np.random.default_rng(0)


CSV = """epoch,step,lr-AdamW,test/accuracy,train/loss,val/accuracy,val/loss
0,0,0.1,,2.5,,
0,1,,,2.0,,
0,1,,,,0.4,2.1
1,3,,,1.5,,
1,3,,,,0.6,1.8
2,4,,0.55,,,
"""


def test_learning_curves_show_training_validation_and_test(tmp_path: Path) -> None:
    source = tmp_path / "metrics.csv"
    source.write_text(CSV)
    path = figures.learning_curves(source, tmp_path / "pictures" / "curves.png")
    found = colours(path)
    assert min(found["BLUE"], found["ORANGE"], found["GREEN"]) > 20
    assert [p.name for p in path.parent.iterdir()] == ["curves.png"]  # no temporary file
    two_panels = size(path)
    source.write_text("epoch,step,train/loss\n0,0,2.5\n0,1,2.0\n")
    one_panel = size(figures.learning_curves(source, path))
    assert one_panel[0] == pytest.approx(two_panels[0] / 2, abs=2)


def diamond(csv: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """The line of the test in the last panel."""
    found: list[Any] = []
    monkeypatch.setattr(figures, "save", lambda figure, out: found.append(figure) or Path(out))
    (folder / "metrics.csv").write_text(csv)
    figures.learning_curves(folder / "metrics.csv", folder / "curves.png", **options)
    (line,) = (line for line in found[0].axes[-1].lines if line.get_marker() == "D")
    return line


LATE = CSV.replace("1,3,,,,0.6,1.8", "1,3,,,,0.3,1.8")  # the first validation was the best


def test_the_diamond_stands_at_the_checkpoint_that_was_tested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = diamond(LATE, tmp_path, monkeypatch, tested_step=3)
    assert line.get_xdata() == [2]  # the third step, counted from 0
    assert line.get_label() == "test 55.00 %"


def test_without_a_record_of_it_the_diamond_stands_at_the_best_validation_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = diamond(LATE, tmp_path, monkeypatch)
    assert line.get_xdata() == [1]
    assert line.get_label() == "test 55.00 % (at best validation)"


def test_learning_curves_show_depth_error_where_there_is_no_accuracy(tmp_path: Path) -> None:
    source = tmp_path / "metrics.csv"
    source.write_text(CSV)
    with_accuracy = size(figures.learning_curves(source, tmp_path / "curves.png"))
    source.write_text(CSV.replace("accuracy", "rmse_m").replace("0.55", "1.5"))
    path = figures.learning_curves(source, tmp_path / "curves.png")
    assert size(path) == with_accuracy
    assert min(colours(path)[name] for name in ("BLUE", "ORANGE", "GREEN")) > 20
    source.write_text("epoch,step,val/rmse_m\n0,1,0.9\n1,3,0.7\n")
    assert colours(figures.learning_curves(source, path))["ORANGE"] > 20


def test_learning_curves_read_what_lightning_writes(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path)
    for step in range(4):
        logger.log_metrics({"train/loss": 3.0 - step, "epoch": 0}, step=step)
    logger.log_metrics({"val/accuracy": 0.5, "val/loss": 1.0, "epoch": 0}, step=3)
    logger.save()
    path = figures.learning_curves(Path(logger.log_dir) / "metrics.csv", tmp_path / "curves.png")
    assert colours(path)["BLUE"] > 20


def test_learning_curves_say_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        figures.learning_curves(tmp_path / "nothing.csv", tmp_path / "x.png")
    (tmp_path / "metrics.csv").write_text("epoch,step,lr\n0,0,0.1\n")
    with pytest.raises(ValueError, match=r"no loss, accuracy, rmse_m, miou or map.*it has: lr"):
        figures.learning_curves(tmp_path / "metrics.csv", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(("side", "n"), [(32, 16), (224, 1)])
def test_sample_grid_frames_right_answers_green_and_wrong_ones_red(
    tmp_path: Path, side: int, n: int
) -> None:
    images = RNG.integers(0, 256, (n, 3, side, side), dtype=np.uint8)
    names = ["a very long class name, and its Latin name as well", "$b$"]
    truths = np.zeros(n, dtype=np.int64)
    path = tmp_path / "grid.png"
    right, wrong = (
        colours(figures.sample_grid(images, truths, said, names, path, confidences=np.ones(n)))
        for said in (truths, truths + 1)
    )
    assert right["GREEN"] > 500 > right["RED"]
    assert wrong["RED"] > 500 > wrong["GREEN"]
    assert max(size(path)) < 1500


@pytest.mark.parametrize("classes", [2, 30, 200])
def test_confusion_matrix_stays_of_readable_size(tmp_path: Path, classes: int) -> None:
    counts = RNG.integers(0, 3, (classes, classes))
    counts[1] = 0  # a class without test images must not divide by zero
    names = [f"class {k}, of many" for k in range(classes)]
    path = figures.confusion_matrix(counts, names, tmp_path / "confusion.png")
    width, height = size(path)
    assert 300 < height < 1200
    assert 300 < width < 1600


def test_a_dollar_in_the_name_of_a_class_is_no_mathematics(tmp_path: Path) -> None:
    names = [r"$\frac{$", "$$", "a"]
    assert figures.confusion_matrix(np.eye(3, dtype=int), names, tmp_path / "x.png").is_file()
