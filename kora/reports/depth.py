"""Report of a depth run: audit of the depth, pictures of fixed images, predictions in HDF5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kora.reports.audit_depth import DepthAudit, audit_depth
from kora.reports.base import Report, Samples
from kora.runs.durable import write_atomically

__all__ = ["DepthReport"]


class DepthReport(Report):
    """The report of a DepthTask."""

    pictured = "depth"

    def audit(self) -> DepthAudit | None:
        """The audit of the depth statistics; None if the data module does not give them."""
        data = self.datamodule
        if data is None or not hasattr(data, "depth_statistics"):
            return None
        splits = self.statistics("depth_statistics")
        return audit_depth(splits, protocol=self.task.protocol, image_size=tuple(data.image_size))

    def draw(self, samples: Samples, path: Path, title: str = "") -> Path:
        """Images with truth, prediction and error."""
        from kora.reports import figures_depth

        batch, predicted = samples
        return figures_depth.depth_grid(
            batch["image"].numpy(),
            batch["depth_m"].numpy(),
            predicted["depth_m"].numpy(),
            path,
            title=title,
        )

    def sample_rows(self) -> list[dict[str, Any]]:
        """Image, truth and prediction on one scale, and RMSE over every measured pixel."""
        if self.samples is None:
            return []
        from kora.reports import figures_depth

        batch, predicted = self.samples
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
