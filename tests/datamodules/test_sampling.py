"""The order of training and the draws of augmentation depend on seed, epoch and place alone."""

from __future__ import annotations

import pytest
import torch

from datamodules import Synthetic
from datamodules.loading import ArrayDataset, as_is
from datamodules.sampling import EpochShuffle, LateLoader, sample_draws


def test_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochShuffle(50, seed=3)
    first = list(sampler)
    torch.manual_seed(99)
    assert list(sampler) == first
    assert sorted(first) == list(range(50))
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(EpochShuffle(50, seed=4)) != first


def test_an_order_can_be_entered_anywhere_and_the_next_epoch_is_whole() -> None:
    whole, entered = EpochShuffle(50, seed=3), EpochShuffle(50, seed=3)
    entered.start_at(2, 20)
    for epoch in (2, 3):
        whole.set_epoch(epoch)
        entered.set_epoch(epoch)
        assert list(entered) == list(whole)[20 if epoch == 2 else 0 :]
    assert len(entered) == 50  # Lightning takes the batches of an epoch from it


def test_processes_together_see_what_one_would_at_the_same_step() -> None:
    one = list(EpochShuffle(48, seed=0))
    two = [list(EpochShuffle(48, seed=0, num_replicas=2, rank=rank)) for rank in (0, 1)]
    for step in range(6):
        batches = [share[4 * step : 4 * step + 4] for share in two]
        assert sorted([*batches[0], *batches[1]]) == sorted(one[8 * step : 8 * step + 8])


def test_shares_are_equally_long_also_where_they_do_not_fit() -> None:
    shares = [list(EpochShuffle(7, seed=0, num_replicas=3, rank=rank)) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 3, 3]
    assert {row for share in shares for row in share} == set(range(7))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_what_its_sampler_says_when_the_first_batch_is_asked_for(
    workers: int,
) -> None:
    sampler = EpochShuffle(10, seed=0)
    loader = LateLoader(
        ArrayDataset({"index": torch.arange(10)}), batch_size=2, sampler=sampler,
        num_workers=workers, collate_fn=as_is, persistent_workers=workers > 0,
    )  # fmt: skip
    batches = iter(loader)
    sampler.set_epoch(5)
    sampler.start_at(5, 4)
    seen = torch.cat([batch["index"] for batch in batches]).tolist()
    assert seen == list(sampler)
    assert len(seen) == 6


def test_draws_are_of_the_image_and_not_of_its_batch() -> None:
    index = torch.arange(1000)
    together = sample_draws(index, 7, seed=0, epoch=3)
    torch.manual_seed(5)
    apart = sample_draws(index[[700, 20]], 7, seed=0, epoch=3)
    assert torch.equal(apart, together[[700, 20]])
    for other in ({"seed": 1, "epoch": 3}, {"seed": 0, "epoch": 4}):
        assert (sample_draws(index, 7, **other) == together).float().mean() < 0.01


def test_draws_are_uniform_and_independent() -> None:
    draws = sample_draws(torch.arange(20_000), 7, seed=0, epoch=0)
    assert draws.dtype == torch.float32
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = torch.stack([torch.histc(column, 20, 0, 1) for column in draws.T])
    chi2 = ((counts - 1000) ** 2 / 1000).sum(1)
    assert chi2.max() < 50  # 19 degrees of freedom: one in 8000 lies above 50
    correlation = torch.corrcoef(torch.cat([draws.T, draws[1:].T.roll(1, 1)[:, :1]], 1))
    assert (correlation - torch.eye(7)).abs().max() < 0.03


def test_the_only_process_has_all_training_images() -> None:
    data = Synthetic(image_size=32, train_images=48, test_images=24, val_images=12, batch_size=6)
    data.setup("fit")
    sampler = data.train_dataloader().sampler
    assert isinstance(sampler, EpochShuffle)
    assert (sampler.num_replicas, sampler.rank, len(sampler)) == (1, 0, 36)
