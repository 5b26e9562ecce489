"""What a training batch holds depends on seed, epoch and place alone, so that a run can go on.

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

__all__ = ["EpochShuffle", "LateLoader", "mix64", "sample_draws", "shares_of", "training_order"]


class EpochShuffle(DistributedSampler[int]):
    """A permutation that depends on the seed and the epoch alone, from any place in it.

    Every strategy then sees the same images in the same order, however many random numbers its
    initialisation drew, and a resumed run goes on with the images that it would have had next.
    Lightning calls `set_epoch`. Several processes take turns, as in torch's own sampler, so that a
    step of all of them sees the images that a single process would with that many times the batch.
    """

    def __init__(self, size: int, *, seed: int, num_replicas: int = 1, rank: int = 0) -> None:
        # A DistributedSampler by type: Lightning would wrap another one, and not tell it the epoch.
        numbers: Any = range(size)
        super().__init__(numbers, num_replicas=num_replicas, rank=rank, seed=seed)
        self.size = size
        self._first = (0, 0)

    def start_at(self, epoch: int, samples: int) -> None:
        """Leave out so many samples of this process in this epoch; every other one is whole."""
        self._first = (epoch, samples)

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        mine = np.resize(order, self.total_size)[self.rank :: self.num_replicas]
        epoch, done = self._first
        return iter(mine[done if self.epoch == epoch else 0 :].tolist())


def training_order(size: int, *, seed: int, trainer: Any) -> EpochShuffle:
    """The order of n training images, or this process's share of it; `trainer` may be None."""
    return EpochShuffle(size, seed=seed, **shares_of(trainer))


def shares_of(trainer: Any) -> dict[str, int]:
    """`num_replicas` and `rank` where a trainer has several processes that share the data."""
    if trainer is None or trainer.world_size == 1:
        return {}
    return trainer.distributed_sampler_kwargs or {}


class LateLoader(DataLoader[Any]):
    """Reads nothing before the first batch is asked for.

    Lightning makes an iterator before it restores a checkpoint, and keeps it: a plain DataLoader's
    worker processes would then have begun with the first epoch.
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

    No generator is moved, so it does not matter what was drawn before, in which batch an image
    lies, or on which process. A hash of a counter: SplitMix64 (Steele, Lea and Flood 2014,
    doi:10.1145/2714064.2660195), of which the upper 24 bits are kept.
    """
    start = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    counter_BK: Any = index_B.numpy().astype(np.uint64)[:, None] * np.uint64(count)
    counter_BK = counter_BK + np.arange(1, count + 1, dtype=np.uint64)
    upper_BK = mix64(start + counter_BK * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return torch.from_numpy(upper_BK.astype(np.float32) / np.float32(2**24))
