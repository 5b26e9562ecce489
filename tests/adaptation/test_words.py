"""The sentence of kora adapt: what may be said of a lead, and what not."""

from __future__ import annotations

import pytest

from kora.adaptation.words import Lead, answer

LEADS = [
    (Lead(0.5, 0.06, (0.01, 0.11), 0.01),
     "Its lead over the linear probe, +6.0 points (+1.0 to +11.0), is more than chance."),
    (Lead(0.5, 0.06, (-0.01, 0.13), 0.2),
     "Its difference from the linear probe, +6.0 points (-1.0 to +13.0), may be chance."),
    (Lead(0.5, -0.06, (-0.11, -0.01), 0.01),
     "The linear probe is ahead on the test images: -6.0 points (-11.0 to -1.0)."),
]  # fmt: skip


@pytest.mark.parametrize(("lead", "expected"), LEADS)
def test_a_lead_is_called_one_only_if_chance_rarely_gives_it(lead: Lead, expected: str) -> None:
    told = answer("LoRA is right", (0.4, 0.7), "guessing 1.0 %", lead, of="images")
    assert told == (
        "LoRA is right (95 % interval 40.0 % to 70.0 %; guessing 1.0 %; a linear probe 50.0 %). "
        + expected
    )


def test_without_a_rival_no_lead_is_named() -> None:
    told = answer("It is right", (0.4, 0.7), "guessing 1.0 %", None, of="images")
    assert told.endswith("guessing 1.0 %). No other strategy was clearly better by validation.")


def test_if_nothing_else_was_tried_it_says_so() -> None:
    told = answer("It is right", (0.4, 0.7), "x", None, of="images", alone="Nothing else ran.")
    assert told.endswith("; x). Nothing else ran.")
