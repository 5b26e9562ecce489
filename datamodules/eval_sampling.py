"""Each process evaluates its own share of a split: no sample is left out, and none comes twice.

Shapes: n images of a split
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

from torch.utils.data import DataLoader, Dataset, DistributedSampler

from datamodules.sampling import shares_of

__all__ = ["EvalBatches", "evaluation_loader"]


class EvalBatches(DistributedSampler[list[int]]):
    """Batches of at most `batch_size` rows for one process; all processes have as many batches.

    torch's own DistributedSampler repeats samples until the shares are equal, and so makes every
    mean over them wrong. Here the last batches are smaller instead. All processes have the
    same number of batches, as a forward pass may wait for the other processes (FSDP does, DDP with
    buffers too). If a share is too small for that at `batch_size` 1, a batch holds two images.

    Raises:
        ValueError: there are fewer images than processes.
    """

    def __init__(
        self, dataset: Dataset[Any], *, batch_size: int, num_replicas: int, rank: int
    ) -> None:
        # Must be a DistributedSampler: Lightning then knows that the data is divided already.
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        assert isinstance(dataset, Sized)
        size = len(dataset)
        if size < num_replicas:
            raise ValueError(
                f"The split to evaluate holds {size} images, fewer than the {num_replicas} "
                "processes that share it. Use fewer devices (trainer.devices), or more images."
            )
        self.rows = range(rank, size, num_replicas)
        self.number = min(-(-size // (num_replicas * batch_size)), size // num_replicas)
        self.batch_size = batch_size

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[list[int]]:
        share = len(self.rows)
        # Full batches, but at least one image is left for each later batch.
        starts = [min(i * self.batch_size, share - (self.number - i)) for i in range(self.number)]
        for start, end in zip(starts, [*starts[1:], share], strict=True):
            yield list(self.rows[start:end])


def evaluation_loader(loader_options: dict[str, Any], trainer: Any) -> DataLoader[Any]:
    """A loader of all samples, or of this process's share if a trainer has several processes."""
    options, shares = dict(loader_options), shares_of(trainer)
    if not shares:
        return DataLoader(**options)
    batches = EvalBatches(options["dataset"], batch_size=options.pop("batch_size"), **shares)
    loader: DataLoader[Any] = DataLoader(batch_sampler=batches, **options)
    # By this attribute Lightning sees that the data is divided already. DataLoader refuses a plain
    # assignment; it reads only its batch_sampler.
    object.__setattr__(loader, "sampler", batches)
    return loader
