"""Claims about evaluation on several processes: every sample once, equally many batches."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch

from datamodules.eval_sampling import EvalBatches, evaluation_loader
from datamodules.loading import ArrayDataset, as_is

CASES = [
    (size, ranks, batch)
    for size, ranks, batch in itertools.product(range(1, 40), (2, 3, 8), (1, 2, 3, 5, 16))
    if size >= ranks
]


def numbers(size: int) -> ArrayDataset:
    return ArrayDataset({"index": torch.arange(size)})


def shares(size: int, ranks: int, batch: int) -> list[list[list[int]]]:
    return [
        list(EvalBatches(numbers(size), batch_size=batch, num_replicas=ranks, rank=rank))
        for rank in range(ranks)
    ]


def test_every_sample_comes_exactly_once_over_all_processes() -> None:
    for case in CASES:
        rows = [row for share in shares(*case) for batch in share for row in batch]
        assert sorted(rows) == list(range(case[0])), case


def test_every_process_has_the_same_number_of_batches_and_none_is_empty() -> None:
    for case in CASES:
        found = shares(*case)
        assert len({len(share) for share in found}) == 1, case
        assert all(batch for share in found for batch in share), case


def test_no_batch_is_larger_than_asked_for_but_at_one_image_a_batch() -> None:
    for size, ranks, batch in CASES:
        largest = max(len(rows) for share in shares(size, ranks, batch) for rows in share)
        assert largest <= max(batch, 2 if batch == 1 else 0), (size, ranks, batch)
        if batch == 1 and size % ranks == 0:
            assert largest == 1


def test_batches_are_full_up_to_the_last_two() -> None:
    found = list(EvalBatches(numbers(41), batch_size=4, num_replicas=2, rank=1))
    assert [len(rows) for rows in found] == [4, 4, 4, 4, 3, 1]  # the other has 21: 5 x 4 + 1


def test_fewer_samples_than_processes_are_refused_with_both_numbers() -> None:
    with pytest.raises(ValueError, match=r"holds 2 images, fewer than the 3 processes"):
        EvalBatches(numbers(2), batch_size=4, num_replicas=3, rank=0)


def test_the_loader_gives_these_batches_with_workers_too() -> None:
    shares = {"num_replicas": 2, "rank": 0}
    trainer = SimpleNamespace(world_size=2, distributed_sampler_kwargs=shares)
    for workers in (0, 2):
        options = {"dataset": numbers(7), "batch_size": 2, "collate_fn": as_is}
        loader = evaluation_loader({**options, "num_workers": workers}, trainer)
        assert len(loader) == 2
        assert [batch["index"].tolist() for batch in loader] == [[0, 2], [4, 6]]
