"""Claims about weighted F1 on a test set of one true class."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.classification import MulticlassF1Score

from kora.analysis.one_class import f1_of_one_class, fits_one_class

# The four rows of table 2 of the KoRA paper (2025).
TABLE_2 = [("0.7104", "0.8307"), ("0.4667", "0.6364"), ("0.9737", "0.9867"), ("0.9824", "0.9911")]


@pytest.mark.parametrize("right", [0, 1, 37, 99, 100])
def test_it_is_the_weighted_f1_of_torchmetrics_whatever_is_predicted_else(right: int) -> None:
    truths = torch.zeros(100, dtype=torch.int64)
    predictions = torch.randint(1, 200, (100,))
    predictions[:right] = 0
    measured = MulticlassF1Score(200, average="weighted")(predictions, truths)
    assert float(measured) == pytest.approx(f1_of_one_class(right / 100), abs=1e-6)


@pytest.mark.parametrize(("accuracy", "f1"), TABLE_2)
def test_every_row_of_table_2_fits_to_the_digit(accuracy: str, f1: str) -> None:
    assert fits_one_class(accuracy, f1)
    assert f"{f1_of_one_class(float(accuracy)):.4f}" == f1


@pytest.mark.parametrize(
    ("accuracy", "f1", "fits"),
    [
        ("0.7104", "0.8308", False),
        ("0.7104", "0.8306", True),  # 0.71035 would print so as well
        ("0.7104", "0.8305", False),
        ("0.9248", "0.924", False),  # many classes: F1 near accuracy itself
        ("0.71", "0.83", True),
        ("0.7", "0.80", True),  # one digit: from 0.65 to 0.75
        ("1.0", "1.0", True),
        ("0.0", "0.0", True),
    ],
)
def test_a_digit_beside_it_does_not_fit(accuracy: str, f1: str, fits: bool) -> None:
    assert fits_one_class(accuracy, f1) == fits
