"""A deaf twin differs from its form in communication alone."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from experiments.deaf import DeafFeedback, DeafResidual
from experiments.modulated import Hears, ModulatedLoRA
from kora.adapters import (
    Composer,
    Feedback,
    Injection,
    KoRA,
    LogitReadout,
    RefinedForm,
    ResidualSequential,
    Strategy,
    Sum,
)
from kora.backbone.vit import Backbone
from tests.support.families import tiny

KINDS = {
    "modulated": {},
    "tokens": {"per": "token"},
    "routed": {"experts": 3},
    "shared": {"shared": True},
}


def images() -> Tensor:
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator())


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def attached(strategy: Strategy) -> tuple[Strategy, Backbone]:
    torch.manual_seed(0)
    backbone = tiny("tiny_vit").eval()
    strategy.attach(backbone)
    return strategy.eval(), backbone


def stirred(module: nn.Module) -> None:
    """Give every parameter a value that is not zero."""
    made = generator()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.5 * torch.randn(parameter.shape, generator=made)


def modulated(hears: Hears, **options: object) -> ModulatedLoRA:
    return ModulatedLoRA(4, d_comp=3, hears=hears, **options)


def over_lora(feedback: Feedback) -> KoRA:
    form = RefinedForm(sites=["proj"], inject=Injection(2, sites=["proj"]))
    return KoRA(form, 4, composer=Sum(), readout=LogitReadout(), feedback=feedback)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hears", ["earlier", "own", "nothing"])
def test_modulated_lora_starts_as_the_frozen_backbone(kind: str, hears: Hears) -> None:
    strategy, backbone = attached(modulated(hears, **KINDS[kind]))
    expected = tiny("tiny_vit").eval()(images()).pooled
    torch.testing.assert_close(strategy(backbone, images()).pooled, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_twin_has_the_same_parameters(kind: str) -> None:
    sizes = []
    for hears in ("earlier", "own"):
        strategy, _ = attached(modulated(hears, **KINDS[kind]))
        sizes.append({name: one.shape for name, one in strategy.trainable()})
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("hears", "changes"), [("earlier", True), ("own", False)])
def test_only_who_hears_earlier_adapters_depends_on_what_they_send(
    kind: str, hears: Hears, changes: bool
) -> None:
    strategy, backbone = attached(modulated(hears, **KINDS[kind]))
    stirred(strategy)
    with torch.no_grad():
        # The first site corrects nothing, so that only its message can reach the others.
        strategy.scales["b00_qkv"].zero_()
        before = strategy(backbone, images()).pooled
        strategy.sends["b00_qkv"].mul_(-3).add_(1)
        after = strategy(backbone, images()).pooled
    assert torch.equal(before, after) is not changes


@pytest.mark.parametrize("kind", KINDS)
def test_everything_trains(kind: str) -> None:
    strategy, backbone = attached(modulated("earlier", **KINDS[kind]))
    stirred(strategy)
    strategy(backbone, images()).pooled.square().sum().backward()
    still = [name for name, one in strategy.named_parameters() if not one.grad.any()]
    assert still == []


def test_an_image_does_not_depend_on_the_others() -> None:
    strategy, backbone = attached(modulated("earlier"))
    stirred(strategy)
    together = strategy(backbone, images()).pooled[1:2]
    torch.testing.assert_close(strategy(backbone, images()[1:2]).pooled, together)
    copied = copy.deepcopy(strategy)
    assert copied._heard == {}


def test_stages_of_the_deaf_chain_see_one_node_each() -> None:
    one, other, last = torch.randn(3, 2, 4, generator=generator())
    for composer, hears in ((ResidualSequential(), True), (DeafResidual(), False)):
        composer.build(2, 4)
        stirred(composer)

        def effect_of_last(first: Tensor, composer: Composer = composer) -> Tensor:
            return composer([first, last]) - composer([first, torch.zeros_like(last)])

        same = torch.allclose(effect_of_last(one), effect_of_last(other), atol=1e-5)
        assert same is not hears


def test_deaf_feedback_adds_what_its_own_block_has_sent() -> None:
    found = {}
    for kind in (Feedback, DeafFeedback):
        torch.manual_seed(3)
        strategy, backbone = attached(over_lora(kind(0)))
        stirred(strategy)
        found[kind] = strategy(backbone, images()).pooled
        # Without what the first block sends, both hear the same.
        with torch.no_grad():
            for parameter in strategy.nodes["b00_proj"].parameters():
                parameter.zero_()
        found[kind, "alone"] = strategy(backbone, images()).pooled
    assert not torch.allclose(found[Feedback], found[DeafFeedback])
    torch.testing.assert_close(found[Feedback, "alone"], found[DeafFeedback, "alone"])


def test_the_loud_twin_adds_as_many_messages_as_the_form() -> None:
    loud, backbone = attached(over_lora(DeafFeedback(0, loud=True)))
    stirred(loud)
    expected = loud(backbone, images()).pooled
    quiet, backbone = attached(over_lora(DeafFeedback(0)))
    stirred(quiet)
    with torch.no_grad():
        for messages, up in enumerate(quiet.feedback.ups.values(), start=1):
            up *= messages
    torch.testing.assert_close(quiet(backbone, images()).pooled, expected)
