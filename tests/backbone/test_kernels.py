"""Claims about the linear layer with low-rank updates: it is the plain form, with less kept."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from kora.adapters import KoRA, LoRA, PaperForm, Strategy, TokenReadout
from kora.backbone.frozen_cast import FrozenCast
from kora.backbone.kernels import Update, keep_mask, updated_linear
from kora.backbone.recompute import note
from kora.backbone.sites import SiteLinear
from kora.tasks import ClassificationTask
from tests.support.adapters import gradients, kept_numbers, loss_of
from tests.support.factory import built, kick
from tests.support.families import tiny

ROWS: dict[str, list[tuple[int, int] | None]] = {
    "all rows": [None],
    "a part": [(4, 8)],
    "two parts": [(0, 4), (8, 12)],
    "two over the same rows": [None, (4, 8)],
}
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "LoRA": lambda: LoRA(2, alpha=0.7),
    "LoRA-parts": lambda: LoRA(2, sites=["q", "v", "proj"]),
    "LoRA-dropout-off": lambda: LoRA(2, dropout=0.5),
    "KoRA": lambda: KoRA(PaperForm(2), 3, alpha=0.7),
    "KoRA-parts": lambda: KoRA(PaperForm(2, sites=["k", "v", "fc2"]), 3),
    "KoRA-tokens": lambda: KoRA(PaperForm(2, pool="tokens"), 3, readout=TokenReadout()),
}


def layer_of(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(6, 12, bias=bias, dtype=dtype).requires_grad_(False)


def updates_of(
    name: str, dtype: torch.dtype, seen: list[Tensor], dropout: float = 0.0
) -> list[tuple[tuple[int, int] | None, Update]]:
    torch.manual_seed(1)
    made = []
    for i, rows in enumerate(ROWS[name]):
        wide = 12 if rows is None else rows[1] - rows[0]
        down = torch.randn(2, 6, dtype=dtype, requires_grad=True)
        up = torch.randn(wide, 2, dtype=dtype, requires_grad=True)
        made.append((rows, Update(down, up, 0.5 + i, seen.append, dropout)))
    return made


def plain(layer: nn.Linear, x: Tensor, updates: Any) -> Tensor:
    y = layer(x)
    masks = [keep_mask(x, update.dropout) if update.dropout else 1 for _, update in updates]
    for (rows, update), mask in zip(updates, masks, strict=True):
        low = (x * mask / (1 - update.dropout)) @ update.down.T
        update.seen(low)
        first, end = rows or (0, 12)
        delta = update.alpha * low @ update.up.T
        y = y + nn.functional.pad(delta, (first, 12 - end))
    return y


def check_against_plain(
    form: Callable[..., Tensor], name: str, x: Tensor, *, lows: bool, dropout: float
) -> None:
    """`form` is given the layer, x and the updates; with `lows`, A x is read by the loss too."""
    results = []
    for compute in (form, plain):
        seen: list[Tensor] = []
        updates = updates_of(name, x.dtype, seen, dropout)  # seeds the draws of dropout, too
        leaf = x.detach().requires_grad_()
        given = leaf.view_as(leaf)
        y = compute(layer_of(dtype=x.dtype), given, updates)
        loss = (y * torch.linspace(-1, 1, 12, dtype=x.dtype)).square().sum()
        if lows:
            loss = loss + sum(low.square().sum() for low in seen)
        leaves = [leaf, *(t for _, u in updates for t in (u.down, u.up))]
        results.append([y.detach(), *torch.autograd.grad(loss, leaves)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def fused(layer: nn.Linear, x: Tensor, updates: Any) -> Tensor:
    return updated_linear(layer, FrozenCast(), x, updates)


@pytest.mark.parametrize("dropout", [0.0, 0.4], ids=["all of x", "dropout"])
@pytest.mark.parametrize("lows", [False, True], ids=["alone", "A x is read too"])
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("shape", ["flat", "tokens", "not contiguous", "one"])
def test_output_and_gradients_are_those_of_the_plain_form(
    shape: str, name: str, lows: bool, dropout: float
) -> None:
    torch.manual_seed(2)
    x = {
        "flat": torch.randn(5, 6),
        "tokens": torch.randn(3, 4, 6),
        "not contiguous": torch.randn(6, 4, 3).permute(2, 1, 0),
        "one": torch.randn(6),
    }[shape]
    x = x.double() if dropout else x  # where less is left, gradients are differences of more
    check_against_plain(fused, name, x, lows=lows, dropout=dropout)


@pytest.mark.parametrize("dropout", [1e-9, 0.1, 0.5, 1 - 1e-9])
def test_a_mask_keeps_its_share_and_each_number_by_itself(dropout: float) -> None:
    torch.manual_seed(0)
    kept = keep_mask(torch.empty(401, 499), dropout)
    assert kept.shape == (401, 499)
    assert kept.dtype == torch.bool
    assert kept.float().mean().item() == pytest.approx(1 - dropout, abs=0.005)
    if 0.1 <= dropout <= 0.5:
        pairs = torch.corrcoef(kept.flatten()[: 401 * 498].view(-1, 6).float().T)
        assert (pairs - torch.eye(6)).abs().max() < 0.03
        assert not torch.equal(kept, keep_mask(kept, dropout))


@pytest.mark.parametrize("dropout", [0.0, 0.4], ids=["all of x", "dropout"])
@pytest.mark.parametrize("source", ["alone", "norm", "gelu", "tanh"])
def test_gradients_are_those_of_finite_differences_and_have_gradients_themselves(
    source: str, dropout: float
) -> None:
    kind = torch.float64
    layer = layer_of(bias=source != "gelu", dtype=kind)
    before: nn.Module = {
        "alone": nn.Identity(),
        "norm": nn.LayerNorm(6, dtype=kind),
        "gelu": nn.GELU(),
        "tanh": nn.GELU(approximate="tanh"),
    }[source]
    note(before.requires_grad_(False))

    def forward(x: Tensor, *factors: Tensor) -> tuple[Tensor, ...]:
        seen: list[Tensor] = []
        updates = [
            ((0, 4), Update(factors[0], factors[1], 0.5, seen.append)),
            (None, Update(factors[2], factors[3], 1.5, seen.append, dropout)),
        ]
        torch.manual_seed(4)  # the same numbers are dropped each time
        return fused(layer, before(2 * x), updates), *seen

    torch.manual_seed(3)
    shapes = [(1, 2, 6), (2, 6), (4, 2), (1, 6), (12, 1)]
    given = [torch.randn(shape, dtype=kind, requires_grad=True) for shape in shapes]
    assert torch.autograd.gradcheck(forward, given)
    assert torch.autograd.gradgradcheck(forward, given, fast_mode=True)


def test_what_is_not_asked_for_is_not_computed() -> None:
    layer, x = layer_of(), torch.randn(3, 6, requires_grad=True)
    seen: list[Tensor] = []
    ((_, update),) = updates_of("all rows", torch.float32, seen)
    y = fused(layer, x, [(None, update)])
    (only_low,) = torch.autograd.grad(seen[0].sum(), [x], retain_graph=True)
    torch.testing.assert_close(only_low, update.down.sum(0).expand(3, 6))
    assert torch.autograd.grad(seen[0].sum(), [update.up], allow_unused=True) == (None,)
    y = fused(layer, x.detach(), [(None, update)])
    assert len(torch.autograd.grad(y.sum(), [update.down, update.up])) == 2
    frozen = update._replace(down=update.down.detach(), up=update.up.detach())
    y = fused(layer, x, [(None, frozen)])
    torch.testing.assert_close(
        torch.autograd.grad(y.sum(), [x])[0],
        (layer.weight + 0.5 * frozen.up @ frozen.down).sum(0).expand(3, 6),
    )


# -- in a model -----------------------------------------------------------------------------------


def listen(task: ClassificationTask) -> ClassificationTask:
    """Somebody listens to the frozen layers, so that they are called, and the sum written out."""
    for module in task.modules():
        if isinstance(module, SiteLinear):
            module.base.register_forward_hook(lambda *_: None)
    return task


def pair(
    make: Callable[[], Strategy], *, checkpointing: bool = False
) -> tuple[ClassificationTask, ClassificationTask]:
    tasks = []
    for _ in range(2):
        backbone = tiny("tiny_vit")
        backbone.model.set_grad_checkpointing(checkpointing)
        tasks.append(kick(built(make(), backbone=backbone), scale=0.2).eval())
    return tasks[0], listen(tasks[1])


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_model_has_the_gradients_of_the_plain_form(
    name: str, kind: torch.dtype, checkpointing: bool, images: Tensor
) -> None:
    mine, theirs = (task.to(kind) for task in pair(STRATEGIES[name], checkpointing=checkpointing))
    _, found = gradients(mine, images)
    _, expected = gradients(theirs, images)
    assert found.keys() == expected.keys()
    close = 1e-5 if kind == torch.float32 else 1e-12
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=close, atol=close, msg=key)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("name", ["LoRA-parts", "KoRA", "KoRA-tokens"])
def test_under_autocast_it_is_as_near_to_float32_as_the_plain_form(
    name: str, checkpointing: bool
) -> None:
    mine, theirs = pair(STRATEGIES[name], checkpointing=checkpointing)

    def error(task: ClassificationTask, images: Tensor, exact: dict[str, Tensor]) -> Tensor:
        task.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(task, images)
        loss.backward()
        errors = []
        for key, parameter in task.trainables().items():
            assert parameter.grad is not None
            assert parameter.grad.dtype == torch.float32
            errors.append((parameter.grad - exact[key]).norm())
        return torch.stack(errors).norm()

    ratios = []
    for seed in range(12):  # of one batch the two roundings may differ by a factor of two
        generator = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=generator)
        _, exact = gradients(theirs, images)
        ratios.append(error(mine, images, exact) / error(theirs, images, exact))
    assert torch.stack(ratios).log().mean().exp() < 1.25


@pytest.mark.parametrize("name", ["LoRA", "KoRA", "KoRA-tokens"])
def test_without_autograd_it_gives_the_same_features(name: str, images: Tensor) -> None:
    mine, theirs = pair(STRATEGIES[name])
    expected = theirs(images)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(mine(images), expected, rtol=1e-5, atol=1e-5)


def test_no_image_gives_no_logits() -> None:
    task = built(LoRA(2), backbone=tiny("tiny_vit"))
    logits = task(torch.zeros(0, 3, 32, 32, dtype=torch.uint8))
    logits.sum().backward()
    assert len(logits) == 0


def test_it_runs_on_the_meta_device() -> None:
    task = built(LoRA(2), backbone=tiny("tiny_vit")).to("meta")
    with torch.autocast("cpu", torch.bfloat16):
        y = task.backbone.model.blocks[0](torch.empty(2, 5, 32, device="meta"))
    assert y.shape == (2, 5, 32)
    y.sum().backward()
    assert all(delta.up_OR.grad.is_meta for delta in list(task.adapter.deltas.values())[:4])


def test_only_the_small_tensors_are_kept_beyond_what_the_frozen_backbone_keeps(
    images: Tensor,
) -> None:
    def kept(task: ClassificationTask) -> int:
        x = 2 * torch.randn(8, 5, 32, requires_grad=True)
        blocks = task.backbone.model.blocks
        return kept_numbers(lambda: blocks(x), besides=[x, *task.parameters()])

    mine, theirs = pair(STRATEGIES["LoRA"])
    bare = built(None, backbone=tiny("tiny_vit"))
    sites, tokens = 8, 8 * 5
    assert kept(mine) == kept(bare) + sites * tokens * 2
    wide = 2 * tokens * (32 + 32 + 128)  # what came out of norm1, norm2 and GELU, in two blocks
    assert kept(theirs) == kept(mine) + wide


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=["float32", "autocast"])
def test_of_dropout_a_mask_is_kept_and_no_second_input(kind: torch.dtype) -> None:
    def kept(dropout: float) -> int:
        task = kick(built(LoRA(2, dropout=dropout), backbone=tiny("tiny_vit"))).train()
        x = 2 * torch.randn(8, 5, 32, requires_grad=True)
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            return kept_numbers(
                lambda: task.backbone.model.blocks(x), besides=[x, *task.parameters()]
            )

    assert kept(0.5) == kept(0.0) + 2 * 8 * 5 * (32 + 32 + 32 + 128)  # what the sites read


def test_dropout_drops_the_same_where_a_block_is_computed_again() -> None:
    task = kick(built(LoRA(2, dropout=0.5), backbone=tiny("tiny_vit")), scale=0.2).train()
    block = task.backbone.model.blocks[0]
    leaves = [torch.randn(3, 5, 32, requires_grad=True)]
    leaves += [p for name, p in task.trainables().items() if "b00_" in name]
    found = []
    for compute in (block, lambda x: checkpoint(block, x, use_reentrant=False)):
        torch.manual_seed(5)
        found.append(torch.autograd.grad(compute(leaves[0]).square().sum(), leaves))
    assert len(leaves) == 9
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_nothing_of_a_pass_is_alive_after_it(images: Tensor) -> None:
    task, _ = pair(STRATEGIES["KoRA"])
    alive: list[StorageWeakRef] = []
    for name in ("norm1", "mlp.fc1", "mlp.act"):
        module = task.backbone.model.blocks[1].get_submodule(name)
        module.register_forward_hook(
            lambda *args: alive.append(StorageWeakRef(args[2].untyped_storage()))
        )
    gc.disable()  # freed by their reference counts, with no cycle between them
    try:
        loss = loss_of(task, images)
        assert [one.expired() for one in alive] == [True, False, True]  # GELU keeps its input
        loss.backward()
        del loss
        assert all(one.expired() for one in alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["LoRA-parts", "KoRA"])
def test_the_whole_step_compiles_as_one_graph(name: str, images: Tensor) -> None:
    torch.compiler.reset()  # other models of this process have used up the number of graphs
    mine, theirs = pair(STRATEGIES[name])
    mine.compile(fullgraph=True, backend="aot_eager")
    loss, found = gradients(mine, images)
    again, expected = gradients(theirs, images)
    assert loss == pytest.approx(again, rel=1e-5)
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("share", "least_error"), [(1e-2, 0.2), (1e-3, 1.5)])
def test_a_merge_in_bfloat16_would_round_small_updates_away(
    share: float, least_error: float
) -> None:
    torch.manual_seed(0)
    weight = 0.03 * torch.randn(768, 768)
    update = torch.randn(768, 8) @ torch.randn(8, 768)
    update *= share * weight.norm() / update.norm()
    arrived = (weight + update).bfloat16().float() - weight.bfloat16().float()
    assert (arrived - update).norm() / update.norm() > least_error
