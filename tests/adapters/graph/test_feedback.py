"""Claims about what is composed and goes back into later blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kora.adapters import Feedback, KoRA, PaperForm, RefinedForm, Sum
from kora.adapters.graph.nodes import Pool
from kora.tasks import ClassificationTask
from tests.support.adapters import gradients
from tests.support.counted import counted_step
from tests.support.factory import built, kick, nano


def fed(from_block: int = 3, pool: Pool = "mean", **options: Any) -> ClassificationTask:
    torch.manual_seed(0)
    strategy = KoRA(
        RefinedForm(pool=pool, sites=["proj"]),
        4,
        composer=Sum(),
        feedback=Feedback(from_block),
        **options,
    )
    return built(strategy, backbone=nano())


def test_every_token_behind_a_block_gets_what_is_composed_up_to_there(images: Tensor) -> None:
    task = kick(fed())
    strategy = task.adapter
    assert isinstance(strategy, KoRA)
    before: dict[int, Tensor] = {}
    after: dict[int, Tensor] = {}
    blocks = task.backbone.model.blocks
    for i, block in enumerate(blocks):
        block.register_forward_hook(
            lambda _, inputs, output, i=i: before.__setitem__(i, output.detach()), prepend=True
        )
        block.register_forward_hook(
            lambda _, inputs, output, i=i: after.__setitem__(i, output.detach())
        )
    sent: list[Tensor] = []
    strategy.observer = lambda vectors, _: sent.extend(vectors)
    strategy(task.backbone, images)
    assert strategy.feedback is not None
    for i in range(6):
        if i < 3:
            assert torch.equal(after[i], before[i])
            continue
        up = strategy.feedback.ups[f"b{i:02d}_feedback"]
        added = torch.stack(sent[: i + 1]).sum(0) @ up.T
        torch.testing.assert_close(after[i] - before[i], added[:, None].expand_as(after[i]),
                                   rtol=1e-4, atol=1e-5)  # fmt: skip


def test_a_gradient_passes_through_the_blocks_behind_it_alone(images: Tensor) -> None:
    """So a step costs more than a side network, and less the later it begins."""
    side = built(
        KoRA(RefinedForm(sites=["proj"]), 4, composer=Sum()),
        backbone=nano(),
    )
    costs = [
        counted_step(task, lambda task=task: task(images).square().sum())[0]
        for task in (side, fed(5), fed(3), fed(0))
    ]
    assert costs == sorted(costs)
    assert costs[1] < 1.05 * costs[0]
    assert costs[3] > 1.6 * costs[0]


def test_gradients_are_those_of_finite_differences(images: Tensor) -> None:
    task = kick(fed()).double()
    _, found = gradients(task, images)
    named = dict(task.named_parameters())
    checked = 0

    def loss() -> float:
        return float(gradients(task, images)[0])

    for name, gradient in found.items():
        if "feedback" not in name and "matrix" not in name:
            continue
        place = int(gradient.flatten().abs().argmax())
        flat = named[name].data.view(-1)
        step, start = 1e-4, float(flat[place])
        flat[place] = start + step
        above = loss()
        flat[place] = start - step
        below = loss()
        flat[place] = start
        expected = (above - below) / (2 * step)
        assert float(gradient.flatten()[place]) == pytest.approx(expected, rel=2e-2, abs=1e-6)
        checked += 1
    assert checked >= 6


def test_it_needs_a_node_up_to_its_first_block() -> None:
    with pytest.raises(ValueError, match="no node of the composition is in"):
        built(KoRA(PaperForm(2, blocks=[4, 5]), 4, feedback=Feedback(2)), backbone=nano())
    with pytest.raises(ValueError, match="expected numbers from 0 to 5"):
        built(KoRA(PaperForm(2), 4, feedback=Feedback(6)), backbone=nano())


def test_its_first_block_counts_from_the_end_too() -> None:
    ups = fed(-3).adapter.feedback.ups
    assert list(ups) == ["b03_feedback", "b04_feedback", "b05_feedback"]


def test_each_token_gets_what_is_composed_for_it(images: Tensor) -> None:
    task = kick(fed(pool="tokens"))
    strategy = task.adapter
    assert isinstance(strategy, KoRA)
    seen: list[Tensor] = []
    block = task.backbone.model.blocks[4]
    for prepend in (True, False):  # before it adds, and after
        block.register_forward_hook(lambda _, i, out: seen.append(out.detach()), prepend=prepend)
    sent: list[Tensor] = []
    strategy.observer = lambda vectors, _: sent.extend(vectors)
    strategy(task.backbone, images)
    assert strategy.feedback is not None
    expected = torch.stack(sent[:5]).sum(0) @ strategy.feedback.ups["b04_feedback"].T
    assert expected.shape == seen[0].shape
    assert expected.std(dim=1).min() > 0  # not the same for every token
    torch.testing.assert_close(seen[1] - seen[0], expected, rtol=1e-4, atol=1e-5)


def test_it_starts_as_the_backbone(images: Tensor) -> None:
    task = fed()
    assert torch.equal(task.features(images).patches, nano()(images).patches)
    assert all(not p.any() for p in task.adapter.feedback.ups.values())
    assert isinstance(task.adapter.feedback, nn.Module)
