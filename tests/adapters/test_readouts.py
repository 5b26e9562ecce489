"""Claims about readouts."""

from __future__ import annotations

import pytest
import torch

from kora.adapters import ClsReadout
from kora.backbones import Features


def features() -> Features:
    torch.manual_seed(0)
    return Features(torch.randn(2, 6), torch.randn(2, 4, 6), torch.randn(2, 1, 6))


def test_it_adds_alpha_times_proj_final_to_pooled_and_nothing_else() -> None:
    readout = ClsReadout("default")
    readout.build(3, 6)
    before, composed = features(), torch.randn(2, 3)
    after = readout(before, composed, 0.5)
    expected = before.pooled + 0.5 * (composed @ readout.weight_DC.T + readout.bias_D)
    torch.testing.assert_close(after.pooled, expected)
    assert torch.equal(after.patches, before.patches)
    assert torch.equal(after.prefix, before.prefix)


def test_of_a_token_wise_composition_it_reads_the_mean() -> None:
    readout = ClsReadout("default")
    readout.build(3, 6)
    composed = torch.randn(2, 5, 3)
    each = [readout(features(), composed[:, n], 1.0).pooled for n in range(5)]
    torch.testing.assert_close(
        readout(features(), composed, 1.0).pooled, torch.stack(each).mean(dim=0)
    )


def test_alpha_scales_the_addition() -> None:
    readout = ClsReadout("default")
    readout.build(3, 6)
    composed = torch.randn(2, 3)
    one, two = (readout(features(), composed, a).pooled - features().pooled for a in (1.0, 2.0))
    torch.testing.assert_close(two, 2 * one)


def test_init_zero_is_the_identity_and_default_is_not() -> None:
    for init, identity in (("zero", True), ("default", False)):
        readout = ClsReadout(init)  # type: ignore[arg-type]
        readout.build(3, 6)
        after = readout(features(), torch.randn(2, 3), 1.0)
        assert torch.equal(after.pooled, features().pooled) == identity


def test_untrained_proj_final_is_a_buffer_that_is_kept_but_not_counted() -> None:
    readout = ClsReadout("default", trainable=False)
    readout.build(3, 6)
    assert list(readout.parameters()) == []
    assert {name: tuple(b.shape) for name, b in readout.named_buffers()} == {
        "weight_DC": (6, 3),
        "bias_D": (6,),
    }
    trained = ClsReadout("default")
    trained.build(3, 6)
    assert sum(p.numel() for p in trained.parameters()) == 3 * 6 + 6


def test_a_readout_that_could_never_leave_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainable: false with init: zero.*no effect.*init: def"):
        ClsReadout(trainable=False)


def test_an_unknown_start_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ClsReadout: init='zeros', expected one of"):
        ClsReadout("zeros")  # type: ignore[arg-type]
