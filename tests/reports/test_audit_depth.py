"""Claims about the audit of depth: what stops a run, what is only said, and what is shown."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from datamodules.depth_statistics import DepthStatistics
from kora.metrics.protocol import DepthProtocol
from kora.reports.audit_depth import DepthAudit, audit_depth

FULL = DepthProtocol.preset("full")


def depths(images: int = 12, *, low: float = 0.5, high: float = 9.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand((images, 6, 8), generator=generator)


def statistics(depth_nHW: Tensor) -> DepthStatistics:
    return DepthStatistics.of_blocks([depth_nHW], of_images=len(depth_nHW))


def audit(protocol: DepthProtocol = FULL, **changes: Tensor | None) -> DepthAudit:
    """The audit of three fair splits, with changes; None leaves a split out."""
    splits: dict[str, Tensor | None] = {
        name: depths(seed=seed) for seed, name in enumerate(("train", "val", "test"))
    }
    splits |= changes
    held = {name: statistics(depth) for name, depth in splits.items() if depth is not None}
    return audit_depth(held, protocol=protocol, image_size=(6, 8))


def shown(found: DepthAudit, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(found.render(**options))
    text: str = console.file.getvalue()
    return text


def test_fair_splits_have_no_problem_and_no_warning() -> None:
    found = audit()
    assert found.problems == found.warnings == found.fatal == ()
    found.check(allow_degenerate=False)


def test_the_record_holds_range_share_and_histogram_but_no_map() -> None:
    depth = depths()
    depth[:, 0] = 0
    record = json.loads(json.dumps(audit(test=depth).to_dict()))
    test = record["splits"]["test"]
    assert test["valid_share"] == pytest.approx(5 / 6)
    assert test["min_m"] == float(depth[depth > 0].min())
    assert test["max_m"] == float(depth.max())
    assert sum(test["counts"]) == int((depth > 0).sum())
    assert "mean_map" not in test


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"test": None}, "test split is empty"),
        ({"train": torch.zeros(12, 6, 8)}, "training split has no measured pixel"),
        ({"test": depths(low=20, high=60)}, "outside of the protocol's range"),
    ],
)
def test_what_no_metric_can_survive_stops_even_an_allowed_run(
    changes: dict[str, Tensor | None], said: str, allowed: bool
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        audit(**changes).check(allow_degenerate=allowed)
    assert "metres" in str(caught.value)  # the remedy


def test_a_constant_truth_stops_unless_it_is_allowed() -> None:
    found = audit(test=torch.full((12, 6, 8), 3.0))
    with pytest.raises(ValueError, match=r"3 m: a constant is perfect[^$]*allow_degenerate: true"):
        found.check(allow_degenerate=False)
    found.check(allow_degenerate=True)
    assert "a constant is perfect" in shown(found)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"val": None}, "no validation split"),
        ({"test": depths(9)}, "test split has only 9 images"),
        ({"test": depths(low=9, high=16)}, "More than half of the test split lies beyond 10 m"),
    ],
)
def test_what_weakens_a_result_is_said_and_stops_nothing(
    changes: dict[str, Tensor | None], said: str
) -> None:
    found = audit(**changes)
    found.check(allow_degenerate=False)
    assert said in " ".join(found.warnings)
    assert said in " ".join(shown(found).split())


def test_a_crop_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="480x640"):
        audit(DepthProtocol.preset("eigen"))


def test_the_histogram_is_shown_where_it_is_asked_for() -> None:
    found = audit()
    assert "Measured pixels by depth" not in shown(found)
    assert "Measured pixels by depth" in shown(found, histogram=True)
