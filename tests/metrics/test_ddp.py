"""Metrics of depth and detection on two processes give what they give on one."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from kora.metrics.depth import DepthMetrics
from kora.metrics.detection import DetectionMetrics
from kora.metrics.protocol import DepthProtocol
from tests.support.depth_metrics import FULL, PIXEL, scenes, values
from tests.support.detections import detections

# As a sampler deals seven images to two processes: the second repeats image 0 to be as long.
SHARES = (([0, 2, 4], [6]), ([1, 3], [5, 0]))
ALONE = (([0, 2, 4], [6]), ())  # the second process has nothing at all


def measured(protocol: DepthProtocol, batches: Any) -> DepthMetrics:
    prediction, truth = scenes(7)
    truth[5] = 0
    metrics = DepthMetrics(protocol)
    for part in batches:
        metrics.update(prediction[part], truth[part], torch.tensor(part))
    return metrics


def detected(batches: Any) -> dict[str, Any]:
    """Everything that the metrics of detection give."""
    predictions, truths = detections(images=7)
    metrics = DetectionMetrics(3)
    for part in batches:
        metrics.update(
            [predictions[i] for i in part], [truths[i] for i in part], torch.tensor(part)
        )
    return {**metrics.compute(), "ap": metrics.per_class(), **metrics.per_image()}


def _process(rank: int, folder: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    cases = {
        "image": measured(FULL, SHARES[rank]),
        "pixel": measured(PIXEL, SHARES[rank]),
        "alone": measured(FULL, ALONE[rank]),
    }
    found = {
        name: (
            values(metrics),
            len(metrics.per_image()["index"]),
            metrics.skipped,
            metrics.per_image(),
        )
        for name, metrics in cases.items()
    }
    found |= {
        "detected": detected(SHARES[rank]),
        "detected alone": detected(ALONE[rank]),
    }
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


def test_two_processes_give_to_the_last_digit_what_one_gives(tmp_path: Path) -> None:
    mp.start_processes(_process, args=(str(tmp_path),), nprocs=2, start_method="fork")
    cases = {
        "image": (FULL, [[0, 1, 2], [3, 4, 5], [6]], 6, 1),
        "pixel": (PIXEL, [[0, 1, 2], [3, 4, 5], [6]], 6, 1),
        "alone": (FULL, [[0, 2, 4], [6]], 4, 0),
    }
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, (protocol, batches, images, skipped) in cases.items():
            alone = measured(protocol, batches)
            scores, its_images, its_skipped, table = found[name]
            assert scores == values(alone)
            assert (its_images, its_skipped) == (images, skipped)
            assert table["index"].tolist() == alone.per_image()["index"].tolist()
            assert torch.equal(table["rmse_m"], alone.per_image()["rmse_m"])
        for name, batches in (("detected", [list(range(7))]), ("detected alone", ALONE[0])):
            for key, value in detected(batches).items():
                assert torch.equal(found[name][key].nan_to_num(-1), value.nan_to_num(-1)), key
