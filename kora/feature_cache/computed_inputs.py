"""Features computed by the frozen backbone: to fill a cache, and to check an existing one.

Shapes: B images a batch, n images of a split, W numbers an image
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.loading import begin_worker
from datamodules.splits import IntArray
from kora.backbone.frozen_inputs import is_read
from kora.feature_cache.rules import kept_fields, pass_of
from kora.feature_cache.table import Layout, Table

__all__ = ["ComputedInputs"]

#: Images of a split that are read twice, and compared with their rows.
_CHECKED = 8
#: As a share of the norm of a row. Half precision stays below 0.01; another image is far above.
_CLOSE = 0.05


class ComputedInputs:
    """The features that the adapter reads for the images of a split, from the frozen backbone.

    With a `view`, for the images as the augmentation gives them in this view.
    """

    def __init__(self, task: Any, trainer: Trainer, split: str, *, view: int | None = None) -> None:
        self.task = task
        self.view = view
        self.trainer = trainer
        self.split = split
        self.images = 0
        self._dataset = trainer.datamodule.loader_dataset(split)  # type: ignore[attr-defined]

    @property
    def keeps_tokens(self) -> bool:
        """Whether they hold all tokens of some layer."""
        return pass_of(self.task).keeps_tokens

    def layout(self, kind: str) -> Layout:
        """The layout of the table of the split."""
        return Layout.of(self._sample, rows=len(self._dataset), kind=kind)

    def steady(self) -> bool:
        """Whether a sample of images is the same when it is read again."""
        rows = self._checked_rows()
        first, again = (self._batch(rows)["image"] for _ in range(2))
        return torch.equal(first, again)

    def agree(self, table: Table) -> bool:
        """Whether a sample of rows of a table belongs to these images and this backbone."""
        kept = table.layout.unpack(table.read(self._checked_rows()))
        mine_BW, kept_BW = _flat(self._sample), _flat(kept)
        different_B = torch.linalg.vector_norm(mine_BW - kept_BW, dim=1)
        return bool((different_B <= _CLOSE * torch.linalg.vector_norm(mine_BW, dim=1)).all())

    def of_rows(self, rows: IntArray) -> Iterator[tuple[IntArray, dict[str, Tensor]]]:
        """The batches of the split that contain at least one of these rows.

        Always whole batches, so that the numbers are bit for bit those of an uninterrupted filling.
        """
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        size = datamodule.eval_batch_size
        batches = [
            list(range(start, min(start + size, len(self._dataset))))
            for start in np.unique(rows // size * size).tolist()
        ]
        loader: DataLoader[Any] = DataLoader(
            self._dataset,
            batch_sampler=batches,
            num_workers=datamodule.num_workers,
            collate_fn=self._dataset.collate,
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # so that nothing is drawn from that of the run
        )
        for places, batch in zip(batches, loader, strict=True):
            self.images += len(places)
            yield np.array(places), self._inputs(batch)

    @cached_property
    def _sample(self) -> dict[str, Tensor]:
        return self._inputs(self._batch(self._checked_rows()))

    def _checked_rows(self) -> list[int]:
        places = np.linspace(0, len(self._dataset) - 1, min(_CHECKED, len(self._dataset)))
        return sorted({round(place) for place in places.tolist()})

    def _batch(self, rows: Sequence[int]) -> Any:
        return self._dataset.collate(self._dataset.__getitems__(rows))

    def _inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        task, adapter = self.task, self.task.adapter
        if self.view is not None:
            batch = self.trainer.datamodule.augmented(batch, self.view)  # type: ignore[attr-defined]
        reads = kept_fields(task)
        images = batch["image"].to(task.device)
        training = adapter.training
        adapter.eval()
        try:
            # As in the task's own forward pass, which may skip tokens.
            leaner = getattr(task, "last_block", None) or nullcontext()
            with torch.no_grad(), self.trainer.precision_plugin.forward_context(), leaner:
                inputs = pass_of(task).inputs(task.backbone, images)
        finally:
            adapter.train(training)
        return {name: tensor for name, tensor in inputs.items() if is_read(name, reads)}


def _flat(inputs: Mapping[str, Tensor]) -> Tensor:
    """(B, W), float32, on the CPU."""
    return torch.cat([part.flatten(1).float().cpu() for part in inputs.values()], dim=1)
