"""Claims about readouts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kora.adapters import (
    ClsReadout,
    KoRA,
    LinearProbe,
    LogitReadout,
    PlainMatrix,
    RefinedForm,
    Sum,
    TokenReadout,
)
from kora.adapters.folder import save_adapter
from kora.backbone.vit import Features, Level
from kora.heads import LinearHead
from kora.tasks import ClassificationTask
from tests.support.adapters import gradients
from tests.support.factory import built


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
        readout = ClsReadout(init)
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
        ClsReadout("zeros")


def with_levels() -> Features:
    torch.manual_seed(0)
    level = Level(torch.randn(2, 4, 6), torch.randn(2, 1, 6))
    return features()._replace(levels=(level, Level(2 * level.patches, 3 * level.prefix)))


def test_the_token_readout_adds_to_each_token_what_was_composed_for_it() -> None:
    readout = TokenReadout("default")
    readout.build(3, 6)
    before, composed = with_levels(), torch.randn(2, 5, 3)  # one prefix token, four patches
    after = readout(before, composed, 0.5)
    delta = torch.stack(
        [0.5 * (composed[:, n] @ readout.weight_DC.T + readout.bias_D) for n in range(5)], dim=1
    )
    torch.testing.assert_close(after.prefix, before.prefix + delta[:, :1])
    torch.testing.assert_close(after.patches, before.patches + delta[:, 1:])
    for mine, theirs in zip(after.levels, before.levels, strict=True):
        torch.testing.assert_close(mine.prefix, theirs.prefix + delta[:, :1])
        torch.testing.assert_close(mine.patches, theirs.patches + delta[:, 1:])
    torch.testing.assert_close(after.pooled, before.pooled + delta.mean(dim=1))


def test_the_token_readout_starts_as_the_identity_unless_asked_otherwise() -> None:
    for init, identity in (("zero", True), ("default", False)):
        readout = TokenReadout(init)
        readout.build(3, 6)
        before = with_levels()
        after = readout(before, torch.randn(2, 5, 3), 1.0)
        assert torch.equal(after.patches, before.patches) == identity
        assert torch.equal(after.levels[1].prefix, before.levels[1].prefix) == identity


def test_the_token_readout_trains_one_projection_for_all_tokens_and_levels() -> None:
    readout = TokenReadout()
    readout.build(3, 6)
    assert sum(p.numel() for p in readout.parameters()) == 3 * 6 + 6
    with pytest.raises(ValueError, match=r"TokenReadout: init='zeros', expected one of"):
        TokenReadout("zeros")


def test_the_logits_get_what_is_composed_through_columns_of_the_head_that_start_at_zero(
    images: Tensor,
) -> None:
    strategy = KoRA(RefinedForm(), 4, composer=Sum(), readout=LogitReadout())
    task, probe = built(strategy), built(LinearProbe())
    assert isinstance(task.head, LinearHead)
    assert task.head.linear.in_features == 128 + 4
    assert isinstance(probe.head, LinearHead)
    with torch.no_grad():
        probe.head.linear.bias.copy_(task.head.linear.bias)
        probe.head.linear.weight.copy_(task.head.linear.weight[:, :128])
    torch.testing.assert_close(task(images), probe(images))
    composed: list[Tensor] = []
    strategy.observer = lambda _, c: composed.append(c)
    with torch.no_grad():
        task.head.linear.weight[:, 128:].normal_()
    added = task(images) - probe(images)
    torch.testing.assert_close(
        added, composed[0] @ task.head.linear.weight[:, 128:].T, rtol=1e-4, atol=1e-5
    )


def logit_kora(d_comp: int = 9) -> KoRA:
    """Nodes from zero, a readout with a direction for each of seven classes."""
    form, readout = RefinedForm(PlainMatrix("zero")), LogitReadout("orthogonal")
    return KoRA(form, d_comp, composer=Sum(), readout=readout)


def columns_of(task: ClassificationTask) -> Tensor:
    """V (K, C)."""
    assert isinstance(task.head, LinearHead)
    return task.head.linear.weight[:, 128:]


def test_each_class_may_have_a_direction_of_its_own_in_the_composition_space() -> None:
    assert logit_kora().label == "KoRA-refined"
    columns_KC = columns_of(built(logit_kora()))
    torch.testing.assert_close(columns_KC @ columns_KC.T, torch.eye(7))
    with pytest.raises(ValueError, match=r"LogitReadout: init='ones', expected one of zero"):
        LogitReadout("ones")


def test_every_node_learns_from_the_first_step_though_it_and_the_head_start_at_zero(
    images: Tensor,
) -> None:
    task = built(logit_kora(), head_init="zero")
    assert not task(images).any()
    _, found = gradients(task, images)
    assert all(found[name].any() for name in found if "matrix" in name)
    assert sum("matrix" in name for name in found) == 24


def test_with_nodes_that_were_trained_elsewhere_the_columns_start_at_zero(tmp_path: Path) -> None:
    source = built(logit_kora())
    save_adapter(tmp_path, source.kept_tensors(), adapter=source.adapter, backbone=source.backbone)
    task = built(logit_kora(), adapter_from=str(tmp_path))
    assert not columns_of(task).any()
