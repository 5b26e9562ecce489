"""Claims about the dense KoRA: a composition for each token, read out at every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters import ClsReadout, Composer, KoRA, PaperForm, TokenReadout
from kora.backbone.vit import Backbone, Features
from tests.support.factory import FAMILIES, family, nano

LAYERS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
LEVELS = (1, 4)


class Mean(Composer):
    """The mean of the nodes, widened by a trainable map; knows nothing of tokens."""

    def build(self, num_nodes: int, d_comp: int) -> None:
        self.mix = nn.Linear(d_comp, d_comp)

    def forward(self, nodes: Sequence[Tensor]) -> Tensor:
        mixed: Tensor = self.mix(torch.stack(list(nodes)).mean(dim=0))
        return mixed


def dense(backbone: Backbone, **options: Any) -> KoRA:
    """Dense KoRA with no zero left in it, on a backbone that returns two levels."""
    backbone.levels = LEVELS
    torch.manual_seed(6)
    inject = options.pop("inject", True)
    places = {key: options.pop(key) for key in ("sites", "blocks") if key in options}
    form = PaperForm(3, pool=options.pop("pool", "tokens"), inject=inject, **places)
    strategy = KoRA(form, 5, **{"readout": TokenReadout(), **options})
    strategy.attach(backbone)
    with torch.no_grad():
        for parameter in strategy.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return strategy


def plain() -> Backbone:
    backbone = nano()
    backbone.levels = LEVELS
    return backbone


def test_it_equals_the_equations_written_for_one_token_at_a_time(images: Tensor) -> None:
    backbone, frozen = nano(), plain()
    strategy = dense(backbone, alpha=0.7, inject=False)
    inputs: list[Tensor] = []
    for block in frozen.model.blocks:
        for path in LAYERS.values():
            block.get_submodule(path).register_forward_pre_hook(
                lambda _, args: inputs.append(args[0])
            )
    expected = frozen(images)
    found = strategy(backbone, images)
    nodes = list(strategy.nodes.values())
    phi, psi = strategy.composer.phi, strategy.composer.psi
    for n in range(inputs[0].shape[1]):  # its own place, and no other, enters
        c = torch.zeros(len(images), 5)
        for i, node in enumerate(nodes):
            p = inputs[i][:, n] @ node.delta.down_RI.T @ node.delta.up_OR.T @ node.project_CO.T
            forwarded = F.gelu(psi[i - 1](c)) if i else 0.0
            c = F.gelu(phi[i](p + forwarded))
        delta = 0.7 * (c @ strategy.readout.weight_DC.T + strategy.readout.bias_D)
        for mine, theirs in zip(found.levels, expected.levels, strict=True):
            token = (mine.prefix if n == 0 else mine.patches)[:, max(n - 1, 0)]
            before = (theirs.prefix if n == 0 else theirs.patches)[:, max(n - 1, 0)]
            torch.testing.assert_close(token, before + delta, rtol=1e-4, atol=1e-4)


def changed(adapted: Features, frozen: Features) -> list[bool]:
    """Whether the patches of the last block and of each level differ from the frozen ones."""
    pairs = [(adapted.patches, frozen.patches)]
    pairs += [
        (mine.patches, theirs.patches)
        for mine, theirs in zip(adapted.levels, frozen.levels, strict=True)
    ]
    return [not torch.allclose(mine, theirs, atol=1e-4) for mine, theirs in pairs]


@pytest.mark.parametrize("pool", ["mean", "cls", "tokens"])
def test_the_cls_readout_leaves_all_that_a_patch_head_reads_as_it_was_to_the_bit(
    pool: Any, images: Tensor
) -> None:
    backbone = nano()
    strategy = dense(backbone, inject=False, pool=pool, readout=ClsReadout("default"))
    adapted, frozen = strategy(backbone, images), plain()(images)
    assert not torch.allclose(adapted.pooled, frozen.pooled, atol=1e-3)
    assert torch.equal(adapted.patches, frozen.patches)
    for mine, theirs in zip(adapted.levels, frozen.levels, strict=True):
        assert torch.equal(mine.patches, theirs.patches)
        assert torch.equal(mine.prefix, theirs.prefix)


def test_the_dense_readout_changes_every_level(images: Tensor) -> None:
    backbone = nano()
    strategy = dense(backbone, inject=False)
    assert changed(strategy(backbone, images), plain()(images)) == [True, True, True]


def test_injected_it_adds_the_composition_to_what_injection_changes(images: Tensor) -> None:
    backbone = nano()
    strategy = dense(backbone, inject=True)
    with_both = strategy(backbone, images)
    with torch.no_grad():
        strategy.readout.weight_DC.zero_()
        strategy.readout.bias_D.zero_()
    injected = strategy(backbone, images)
    assert changed(injected, plain()(images)) == [True, True, True]
    assert changed(with_both, injected) == [True, True, True]


@pytest.mark.parametrize("inject", [False, True])
def test_it_works_with_a_composer_that_knows_nothing_of_tokens(
    inject: bool, images: Tensor
) -> None:
    backbone = nano()
    strategy = dense(backbone, inject=inject, composer=Mean())
    adapted = strategy(backbone, images)
    (adapted.levels[0].patches.square().mean() + adapted.levels[1].patches.mean()).backward()
    for name, parameter in strategy.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_node_sees_its_own_place_alone(images: Tensor) -> None:
    """In the first block, before attention mixes tokens, one changed patch moves one delta."""
    backbone = nano()
    strategy = dense(backbone, inject=False, sites=["qkv"], blocks=[0])
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    other = images.clone()
    other[:, :, 8:16, 16:24] = 0  # row 1, column 2 of the 8 x 8 grid
    deltas = [
        strategy(backbone, x).levels[0].patches - plain()(x).levels[0].patches
        for x in (images, other)
    ]
    moved = (deltas[0] - deltas[1]).abs().amax(dim=(0, 2)) > 1e-4
    assert moved.nonzero().flatten().tolist() == [10]


@pytest.mark.parametrize("name", FAMILIES)
def test_it_reaches_the_patches_of_every_family(name: str) -> None:
    backbone = family(name)
    frozen = backbone(torch.full((2, 3, 40, 40), 90, dtype=torch.uint8), levels=LEVELS)
    sites = ["proj", "fc1", "fc2"]  # qkv is dead in BEiT and EVA02
    strategy = dense(backbone, inject=False, sites=sites)
    adapted = strategy(backbone, torch.full((2, 3, 40, 40), 90, dtype=torch.uint8))
    assert changed(adapted, frozen) == [True, True, True]
    assert adapted.prefix.shape == frozen.prefix.shape


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_a_dense_readout_of_one_vector_an_image_is_refused(pool: Any) -> None:
    with pytest.raises(ValueError, match=rf"TokenReadout adds to every token.*pool='{pool}'.*tok"):
        KoRA(PaperForm(pool=pool), readout=TokenReadout())


def test_the_label_tells_the_dense_form() -> None:
    labels = [
        KoRA(PaperForm(inject=inject, pool="tokens"), readout=TokenReadout()).label
        for inject in (True, False)
    ]
    assert labels == ["KoRA-tokens", "KoRA-side-tokens"]
