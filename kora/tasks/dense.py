"""What the tasks share whose answer belongs to places in the picture: depth, masks, boxes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

from kora.adapters import Strategy
from kora.backbone.vit import Backbone
from kora.tasks.base import AdapterTask

__all__ = ["Batch", "DenseTask", "Size"]

Batch = dict[str, Tensor]
Size = tuple[int, int]

_MANY = {"mask": "masks", "box": "boxes"}


class DenseTask(AdapterTask):
    """A head that the caller chooses, and metrics that gather the whole split.

    A subclass sets `val_metrics` and `test_metrics` (and those of its constants, if it has any),
    and fills them in `_evaluate`. Options besides these are those of `AdapterTask`.

    Args:
        backbone: The frozen vision transformer.
        adapter: The strategy; None trains the head alone.
        head: The head, without parameters until `build_head` takes it.
        protocol: How the evaluation counts.
    """

    records_head = True
    val_metrics: Any
    test_metrics: Any

    def __init__(
        self,
        backbone: Backbone,
        adapter: Strategy | None = None,
        *,
        head: Any,
        protocol: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(backbone, adapter, **kwargs)
        self.protocol = protocol
        # In a list, so that it is not a submodule before `build` makes it one.
        self._head_to_build = [head]

    def take_head(self, *about: Any) -> nn.Module:
        """The head, built for the backbone and `about`, which then returns the levels it reads."""
        head = self._head_to_build.pop()
        head.build(self.backbone, *about)
        self.backbone.levels = head.blocks(self.backbone.depth)
        assert isinstance(head, nn.Module)
        return head

    def agreed_classes(self, num_classes: int | None, of: str, data: str) -> int:
        """K, from the argument or from the names that the data module has.

        Args:
            num_classes: The argument; None: the data says it.
            of: What has classes, `mask` or `box`, of which the data has `<of>_names`.
            data: What data is needed, if there is none.

        Raises:
            ValueError: Neither has it, or they differ.
        """
        names = getattr(getattr(self._trainer, "datamodule", None), f"{of}_names", None)
        if names and num_classes not in (None, len(names)):
            raise ValueError(
                f"model.num_classes is {num_classes}, and the {_MANY[of]} of the data have "
                f"{len(names)} classes. Leave it out: it follows the data."
            )
        if not names and num_classes is None:
            raise ValueError(
                f"The number of classes is not known: the data has no {_MANY[of]}. {data}"
            )
        return len(names) if names else int(num_classes or 0)

    @abstractmethod
    def _evaluate(self, batch: Batch, metrics: Any) -> None:
        """Add a batch to these metrics, and in a test to those of the constants."""

    def minimised(self, loss: Tensor) -> Tensor:
        """The loss with the strategy's regulariser; both are logged."""
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=False, sync_dist=True)
        return self.with_penalty(loss)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics of the validation part."""
        self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics of the test set."""
        self._evaluate(batch, self.test_metrics)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the validation part."""
        self.log_metrics(self.val_metrics, "val")
        self.val_metrics.reset()

    def log_metrics(self, metrics: Any, stage: str) -> None:
        """Log the values of the metrics, as `stage/name`."""
        for name, value in self._values(metrics).items():
            key = f"{stage}/{name}"
            # Equal on every process; without sync_dist, Lightning would warn.
            self.log(key, value.float(), sync_dist=True, prog_bar=key == self.monitor[0])

    def _values(self, metrics: Any) -> dict[str, Tensor]:
        """What to log of the metrics."""
        found: dict[str, Tensor] = metrics.compute()
        return found
