"""Claims about parameter groups and the schedule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from kora.adapters import FullFineTune, KoRA, PaperForm
from kora.tasks.optim import fuse_on_cpu, parameter_groups, schedule_factor
from tests.support.factory import built

NAMED = {
    "adapter.down": nn.Parameter(torch.zeros(2, 3)),
    "adapter.gate": nn.Parameter(torch.zeros(())),
    "adapter.norm": nn.Parameter(torch.zeros(3)),
    "head.weight": nn.Parameter(torch.zeros(5, 3)),
    "head.bias": nn.Parameter(torch.zeros(5)),
    "adapter.head.up": nn.Parameter(torch.zeros(3, 2)),
}


def groups_of(name: str, head_lr: float | None) -> list[dict[str, object]]:
    optimizer = torch.optim.AdamW(
        parameter_groups(NAMED, head_lr=head_lr), lr=0.1, weight_decay=0.2
    )
    return [g for g in optimizer.param_groups if any(p is NAMED[name] for p in g["params"])]


@pytest.mark.parametrize(
    ("name", "lr", "decay"),
    [
        ("adapter.down", 0.1, 0.2),
        ("adapter.gate", 0.1, 0.0),
        ("adapter.norm", 0.1, 0.0),
        ("head.weight", 0.7, 0.2),
        ("head.bias", 0.7, 0.0),
        ("adapter.head.up", 0.1, 0.2),
    ],
)
def test_each_tensor_is_in_one_group_with_its_own_rate_and_decay(
    name: str, lr: float, decay: float
) -> None:
    (group,) = groups_of(name, 0.7)
    assert (group["lr"], group["weight_decay"]) == (lr, decay)


def test_without_head_lr_all_share_the_rate_of_the_optimiser() -> None:
    assert {group["lr"] for name in NAMED for group in groups_of(name, None)} == {0.1}


def test_no_group_is_empty_and_all_groups_together_are_what_trains() -> None:
    task = built(KoRA(PaperForm(2), 2))
    groups = parameter_groups(task.trainables(), head_lr=0.1)
    members = [p for group in groups for p in group["params"]]
    assert all(group["params"] for group in groups)
    assert len(members) == len({id(p) for p in members})
    assert {id(p) for p in members} == {id(p) for p in task.parameters() if p.requires_grad}


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("total", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
def test_every_step_moves_and_none_exceeds_the_rate(
    schedule: str, total: int, warmup: float
) -> None:
    factor = schedule_factor(schedule, total_steps=total, warmup_fraction=warmup)
    values = [factor(step) for step in range(total)]
    assert all(0 < value <= 1 for value in values)
    assert max(values) == 1


def test_warm_up_is_linear_and_the_cosine_ends_near_zero() -> None:
    factor = schedule_factor("cosine", total_steps=100, warmup_fraction=0.1)
    assert [factor(step) for step in range(10)] == pytest.approx([i / 10 for i in range(1, 11)])
    assert factor(10) == 1
    assert factor(55) == pytest.approx(0.5)
    assert factor(99) < 1e-3
    assert factor(100) == pytest.approx(0)
    assert factor(150) == pytest.approx(0)  # a step too many does not rise again
    falling = [factor(step) for step in range(10, 101)]
    assert falling == sorted(falling, reverse=True)


def test_constant_stays_after_the_warm_up() -> None:
    factor = schedule_factor("constant", total_steps=10, warmup_fraction=0.2)
    assert [factor(step) for step in (0, 1, 2, 9, 50)] == [0.5, 1, 1, 1, 1]


def test_what_timm_does_not_decay_is_not_decayed() -> None:
    task = built(FullFineTune())
    undecayed = {f"adapter.{name}" for name in task.backbone.model.no_weight_decay()}
    assert {"adapter.pos_embed", "adapter.cls_token"} <= undecayed
    groups = parameter_groups(task.trainables(), undecayed=undecayed)
    spared = {id(p) for g in groups if g.get("weight_decay") == 0.0 for p in g["params"]}
    assert id(task.backbone.model.pos_embed) in spared
    assert id(task.backbone.model.cls_token) in spared
    assert id(task.backbone.model.blocks[0].attn.qkv.weight) not in spared


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_a_fused_step_on_a_cpu_is_the_loop_over_tensors(
    kind: Callable[..., torch.optim.Optimizer],
) -> None:
    results = []
    for change in (fuse_on_cpu, lambda optimizer: optimizer):
        tensors = [nn.Parameter(torch.linspace(-1, 1, n).reshape(n, 1)) for n in (1, 7, 40)]
        idle = nn.Parameter(torch.ones(3))  # gets no gradient
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = change(
            kind([{"params": tensors}, {"params": [idle]}], lr=0.1, weight_decay=0.1, **options)
        )
        for _ in range(3):
            optimizer.zero_grad()
            sum(tensor.sin().sum() for tensor in tensors).backward()
            optimizer.step()
        results.append([*tensors, idle])
    assert torch.equal(results[0][-1], torch.ones(3))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, True),
        ({"fused": False}, False),
        ({"foreach": True}, None),
        ({"foreach": False}, None),
        ({"capturable": True}, None),
        ({"differentiable": True}, None),
    ],
)
def test_what_an_option_settles_stays(options: dict[str, bool], expected: bool | None) -> None:
    optimizer = fuse_on_cpu(torch.optim.AdamW([nn.Parameter(torch.zeros(2))], **options))
    assert optimizer.param_groups[0]["fused"] is expected


def test_only_what_can_be_fused_on_a_cpu_is() -> None:
    elsewhere = fuse_on_cpu(torch.optim.AdamW([nn.Parameter(torch.zeros(2, device="meta"))]))
    assert elsewhere.param_groups[0]["fused"] is None
    without = fuse_on_cpu(torch.optim.NAdam([nn.Parameter(torch.zeros(2))]))
    assert "fused" not in without.param_groups[0]
