"""What a batch draws is a function of seed, epoch, batch and process."""

from __future__ import annotations

import random

import numpy as np
import torch

from kora.training.training_state import seed_batch


def drawn(**changed: int) -> tuple[float, float, float]:
    numbers = {"seed": 1, "epoch": 2, "batch": 3, "rank": 0} | changed
    seed_batch(numbers.pop("seed"), **numbers, device=torch.device("cpu"))
    return random.random(), float(np.random.rand()), float(torch.rand(()))  # noqa: NPY002


def test_the_same_batch_draws_the_same_and_every_other_something_else() -> None:
    first = drawn()
    assert drawn() == first
    for key in ("seed", "epoch", "batch", "rank"):
        assert not set(drawn(**{key: 7})) & set(first), key


def test_torch_draws_as_after_its_own_manual_seed() -> None:
    numbers = np.random.SeedSequence([1, 2, 3, 0]).generate_state(3)
    mine = drawn()[2]
    torch.manual_seed(int(numbers[2]))
    assert float(torch.rand(())) == mine
