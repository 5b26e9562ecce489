"""Claims about the head of a classifier."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kora.adapters import LinearProbe
from kora.heads import LinearHead
from kora.tasks import ClassificationTask
from tests.support.factory import built, nano


def test_a_head_from_zero_begins_with_equal_logits(images: Tensor) -> None:
    assert not built(LinearProbe(), head_init="zero")(images).any()
    assert built(LinearProbe())(images).any()


def test_columns_for_more_channels_leave_the_others_as_they_would_be() -> None:
    def head(**options: int) -> LinearHead:
        torch.manual_seed(0)
        return LinearHead(nano(), 3, **options)

    alone, wider = head().linear, head(extra=(5, "zero")).linear
    assert torch.equal(wider.weight[:, :128], alone.weight)
    assert torch.equal(wider.bias, alone.bias)
    assert not wider.weight[:, 128:].any()


def test_an_unknown_start_of_the_head_is_refused() -> None:
    with pytest.raises(ValueError, match="head_init='ones', expected default or zero"):
        ClassificationTask(nano(), head_init="ones")


def test_dropout_of_the_head_acts_in_training_alone(images: Tensor) -> None:
    task = built(LinearProbe(), head_dropout=0.5)
    task.eval()
    assert torch.equal(task(images), task(images))
    task.train()
    assert not torch.equal(task(images), task(images))


def test_a_dropout_of_the_head_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head_dropout=1\.0, expected a probability in \[0, 1\)"):
        built(LinearProbe(), head_dropout=1.0)
