"""Training batches depend only on seed, epoch and position, so that a run can resume exactly.

Shapes: B images a batch, n images of a split, K numbers an image
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

__all__ = ["EpochShuffle", "LateLoader", "mix64", "sample_draws", "shares_of"]


class EpochShuffle(DistributedSampler[int]):
    """A permutation that depends only on seed and epoch, and can start at any position.

    Every strategy then sees the same images in the same order, however many random numbers its
    initialisation drew, and a resumed run continues with the next images. Lightning calls
    `set_epoch`. Several processes take turns, as in torch's own sampler: together they see the same
    images in a step as a single process with that many times the batch.
    """

    def __init__(self, size: int, *, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        # Must be a DistributedSampler: Lightning wraps other samplers, and sets no epoch there.
        numbers: Any = range(size)
        super().__init__(numbers, num_replicas=num_replicas, rank=rank, seed=seed)
        self.size = size
        self._first = (0, 0)

    def start_at(self, epoch: int, samples: int) -> None:
        """Skip the first `samples` of this process in this epoch; all other epochs are whole."""
        self._first = (epoch, samples)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        mine = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        epoch, done = self._first
        return iter(mine[done if self.epoch == epoch else 0 :].tolist())


def shares_of(trainer: Any) -> dict[str, int]:
    """`num_replicas` and `rank` if a trainer has several processes that share the data."""
    if trainer is None or trainer.world_size == 1:
        return {}
    return trainer.distributed_sampler_kwargs or {}


class LateLoader(DataLoader[Any]):
    """A data loader that reads nothing before the first batch is requested.

    Lightning makes an iterator before it restores a checkpoint, and keeps it: the workers of a
    plain DataLoader would already have started with the first epoch.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        yield from super().__iter__()


def mix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of SplitMix64 (Steele, Lea and Flood 2014): scrambles each word."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def sample_draws(index_B: Tensor, count: int, *, seed: int, epoch: int) -> Tensor:
    """Uniform numbers in [0, 1), float32 (B, K): a function of seed, epoch and image alone.

    There is no generator, so it does not matter what was drawn before, or which batch and process
    an image is in. The numbers are a hash of a counter: the upper 24 bits of SplitMix64 (Steele,
    Lea and Flood 2014, doi:10.1145/2714064.2660195).
    """
    start = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    counter_BK: Any = index_B.numpy().astype(np.uint64)[:, None] * np.uint64(count)
    counter_BK = counter_BK + np.arange(1, count + 1, dtype=np.uint64)
    upper_BK = mix64(start + counter_BK * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return torch.from_numpy(upper_BK.astype(np.float32) / np.float32(2**24))
