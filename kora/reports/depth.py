"""Report of a depth run: audit of the depth, pictures of fixed images, predictions in HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from kora.reports.audit_depth import DepthAudit, audit_depth
from kora.reports.base import Report, spread
from kora.runs.durable import write_atomically

__all__ = ["DepthReport"]

_PICTURED = 4
Samples = tuple[dict[str, Tensor], dict[str, Tensor]]  # a batch, and its predictions
_LOOKED_AT = {"train": 1000, "val": 200, "test": 200}


class DepthReport(Report):
    """The report of a DepthTask."""

    _baselines: dict[str, dict[str, float]] | None = None
    _samples: Samples | None = None

    def audit(self) -> DepthAudit | None:
        """The audit of the depth statistics; None if the data module does not give them."""
        data = self.datamodule
        if data is None or not hasattr(data, "depth_statistics"):
            return None
        data.setup_splits()
        self.evaluation("test")  # refuses a protocol of another split before training
        splits = {
            split: data.depth_statistics(split, most_images=most)
            for split, most in _LOOKED_AT.items()
            if len(data.indices(split))
        }
        return audit_depth(splits, protocol=self.task.protocol, image_size=tuple(data.image_size))

    def gather(self, stage: str) -> None:
        """Baseline scores of all processes, and after the test predictions of some images."""
        self._baselines = self.task.baselines()
        if stage == "test":
            self._samples = self._predicted("test")

    def baselines(self) -> dict[str, dict[str, float]]:
        """Scores of the mean training depth, everywhere and at each pixel."""
        return self._baselines or {}

    def evaluation(self, stage: str) -> dict[str, Any]:
        """The DepthProtocol, with the name of the official part that was evaluated."""
        parts = getattr(self.datamodule, "official_parts", {})
        split = "val" if stage == "val" else str(parts.get("test", "test"))
        found: dict[str, Any] = self.task.evaluation(split)
        return found

    def epoch_picture(self, folder: Path, epoch: int) -> Path | None:
        """Fixed validation images after this epoch."""
        samples = self._predicted("val")
        if samples is None or rank_zero_only.rank:  # type: ignore[attr-defined]
            return None
        return _draw(samples, folder / "val_depth" / f"epoch_{epoch:03d}.png", f"epoch {epoch}")

    def pictures(self, folder: Path) -> list[Path]:
        """Fixed test images with truth, prediction and error."""
        return [] if self._samples is None else [_draw(self._samples, folder / "test_depth.png")]

    def sample_rows(self) -> list[dict[str, Any]]:
        """Image, truth and prediction on one scale, and RMSE over every measured pixel."""
        if self._samples is None:
            return []
        from kora.reports import figures_depth

        batch, predicted = self._samples
        truths, predictions = batch["depth_m"].numpy(), predicted["depth_m"].cpu().numpy()
        scale = figures_depth.depth_range(truths)
        _, rmse_m = figures_depth.errors_of(truths, predictions)
        return [
            {
                "image": image.permute(1, 2, 0).numpy(),
                "truth": figures_depth.shaded(truth, *scale),
                "prediction": figures_depth.shaded(guess, *scale),
                "rmse_m": float(rmse),
            }
            for image, truth, guess, rmse in zip(
                batch["image"], truths, predictions, rmse_m, strict=True
            )
        ]

    def _predicted(self, split: str) -> Samples | None:
        data = self.datamodule
        if not hasattr(data, "samples") or not len(data.indices(split)):
            return None
        batch = data.samples(split, spread(len(data.indices(split)), _PICTURED))
        return batch, self.predict(batch["image"])

    def write_predictions(self, folder: Path, batches: Sequence[Any]) -> Path:
        """Write `index` (n,) and `depth_m` (n, H, W), float32 metres, to predictions.h5."""
        import h5py

        def write(target: Path) -> None:
            with h5py.File(target, "w") as file:
                for name in ("index", "depth_m"):
                    columns = [batch[name].numpy() for batch in batches if name in batch]
                    if not columns:
                        continue
                    size = sum(len(column) for column in columns)
                    data = file.create_dataset(
                        name,
                        shape=(size, *columns[0].shape[1:]),
                        dtype=columns[0].dtype,
                        chunks=(1, *columns[0].shape[1:]) if columns[0].ndim > 1 else None,
                        compression="gzip" if columns[0].ndim > 1 else None,
                    )
                    at = 0
                    for column in columns:
                        data[at : at + len(column)] = column
                        at += len(column)
                if "depth_m" in file:
                    file["depth_m"].attrs["unit"] = "m"

        return write_atomically(folder / "predictions.h5", write)


def _draw(samples: Samples, path: Path, title: str = "") -> Path:
    from kora.reports import figures_depth

    batch, predicted = samples
    return figures_depth.depth_grid(
        batch["image"].numpy(),
        batch["depth_m"].numpy(),
        predicted["depth_m"].numpy(),
        path,
        title=title,
    )
