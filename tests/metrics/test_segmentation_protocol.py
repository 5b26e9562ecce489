"""Claims about the protocol of segmentation: what it accepts, and that it says all it does."""

from __future__ import annotations

from typing import Any

import pytest

from kora.metrics.segmentation_protocol import SegmentationProtocol


def test_a_name_stands_for_a_window() -> None:
    assert SegmentationProtocol.read("whole") == SegmentationProtocol()
    assert SegmentationProtocol.read("slide").window == "slide"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("crop", "window is 'crop', expected whole or slide"),
        ({"windows": "slide"}, "protocol.windows is no field, expected any of split, window"),
        ({"window": "slide", "stride": 0}, r"expected a share of the window in \(0, 1\]"),
        ({"window": "slide", "scales": []}, "expected one or more numbers"),
        (
            {"window": "slide", "scales": 1.5},
            "protocol.scales is 1.5, expected one or more numbers",
        ),
        ({"window": "slide", "scales": ["a"]}, r"protocol.scales is \['a'\], expected one or more"),
        ({"window": "slide", "stride": "half"}, "protocol.stride is 'half', expected a share"),
        ({"window": "slide", "stride": None}, "protocol.stride is None, expected a share"),
        ({"scales": [1, 1.5]}, "Use window: slide"),
        ({"window": "slide", "scales": [0.5]}, "from 1 to 8: at 1 the image just covers"),
        ({"flip_tta": "yes"}, "expected true or false"),
        ({"split": ""}, "expected the name of a split"),
    ],
)
def test_what_means_nothing_is_refused(given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SegmentationProtocol.read(given)


@pytest.mark.parametrize(
    "changed",
    [
        {"window": "slide"},
        {"window": "slide", "stride": 0.5},
        {"window": "slide", "scales": [1.0, 1.5]},
        {"flip_tta": True},
        {"split": "val"},
    ],
)
def test_every_field_that_matters_is_in_the_record_and_in_the_sentence(
    changed: dict[str, Any],
) -> None:
    plain, other = SegmentationProtocol(), SegmentationProtocol.read(changed)
    assert plain.to_dict() != other.to_dict()
    assert plain.sentence() != other.sentence()
    assert SegmentationProtocol(**other.to_dict()) == other
