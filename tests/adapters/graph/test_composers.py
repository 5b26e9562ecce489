"""Claims about composers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kora.adapters import (
    Composer,
    DepthAttention,
    ResidualSequential,
    Sequential,
    Sum,
)


def chain(num_nodes: int, d_comp: int, seed: int = 0) -> Sequential:
    torch.manual_seed(seed)
    composer = Sequential()
    composer.build(num_nodes, d_comp)
    return composer


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def test_it_is_the_recursion_of_the_paper() -> None:
    composer, nodes = chain(7, 4), list(torch.randn(7, 3, 4))
    c = gelu(nodes[0] @ composer.phi[0].weight.T + composer.phi[0].bias)
    for i in range(1, 7):
        before = gelu(c @ composer.psi[i - 1].weight.T + composer.psi[i - 1].bias)
        c = gelu((nodes[i] + before) @ composer.phi[i].weight.T + composer.phi[i].bias)
    torch.testing.assert_close(composer(nodes), c, rtol=1e-5, atol=1e-6)


def test_a_single_node_is_a_chain_without_psi() -> None:
    composer, node = chain(1, 4), torch.randn(3, 4)
    assert len(composer.psi) == 0
    torch.testing.assert_close(composer([node]), gelu(composer.phi[0](node)))


def test_tokens_are_composed_one_by_one() -> None:
    composer, nodes = chain(5, 4), list(torch.randn(5, 2, 6, 4))
    whole = composer(nodes)
    for n in range(6):
        torch.testing.assert_close(whole[:, n], composer([node[:, n] for node in nodes]))


def test_the_order_of_the_nodes_matters() -> None:
    composer, nodes = chain(5, 4), list(torch.randn(5, 2, 4))
    assert not torch.allclose(composer(nodes), composer(nodes[::-1]))


@pytest.mark.parametrize(("num_nodes", "d_comp"), [(48, 4), (48, 8), (3, 16)])
def test_it_has_two_maps_a_node_less_one(num_nodes: int, d_comp: int) -> None:
    count = sum(p.numel() for p in chain(num_nodes, d_comp).parameters())
    assert count == (2 * num_nodes - 1) * (d_comp**2 + d_comp)


@pytest.mark.parametrize("d_comp", [8, 64])
def test_the_chain_forgets(d_comp: int) -> None:
    """At the first step the gradient at a node fades with its distance from the end of the chain.

    A property of the published Phi and Psi, not of an error here: with 48 nodes and random inputs
    it shrinks by more than 1e6 within eight nodes and is exactly 0 at the first, in float32. A
    wider composition space does not help.
    """
    composer = chain(48, d_comp)
    nodes = [torch.randn(64, d_comp, requires_grad=True) for _ in range(48)]
    composer(nodes).sum().backward()
    norms = [float(node.grad.norm()) if node.grad is not None else 0.0 for node in nodes]
    assert norms[-1] > 1e-2
    assert norms[-1] > 1e6 * norms[-9]
    assert norms[0] == 0


COMPOSERS: list[Callable[[], Composer]] = [
    Sequential, Sum, ResidualSequential, DepthAttention,
]  # fmt: skip
REFINED = COMPOSERS[1:]


def made(kind: Callable[[], Composer], num_nodes: int = 5, d_comp: int = 4) -> Composer:
    torch.manual_seed(0)
    composer = kind()
    composer.build(num_nodes, d_comp)
    return composer


def moved(composer: Composer) -> Composer:
    """Away from its start."""
    with torch.no_grad():
        for parameter in composer.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return composer


@pytest.mark.parametrize("kind", COMPOSERS)
def test_what_is_said_of_an_image_does_not_depend_on_its_neighbours(
    kind: Callable[[], Composer],
) -> None:
    composer, nodes = moved(made(kind)), list(torch.randn(5, 6, 4))
    alone = torch.cat([composer([node[i : i + 1] for node in nodes]) for i in range(6)])
    torch.testing.assert_close(composer(nodes), alone)


@pytest.mark.parametrize("kind", COMPOSERS)
def test_it_takes_pooled_vectors_and_tokens_alike(kind: Callable[[], Composer]) -> None:
    composer, nodes = moved(made(kind)), list(torch.randn(5, 2, 3, 4))
    whole = composer(nodes)
    for n in range(3):
        torch.testing.assert_close(whole[:, n], composer([node[:, n] for node in nodes]))


@pytest.mark.parametrize("kind", COMPOSERS)
def test_it_composes_the_first_few_nodes_as_well(kind: Callable[[], Composer]) -> None:
    composer, nodes = moved(made(kind)), list(torch.randn(5, 2, 4))
    for few in range(1, 5):
        assert composer(nodes[:few]).shape == (2, 4)
    later = [*nodes[:3], *torch.randn(2, 2, 4)]
    torch.testing.assert_close(composer(nodes[:3]), composer(later[:3]))


@pytest.mark.parametrize("kind", REFINED)
def test_the_first_of_48_nodes_is_heard_from_the_start(kind: Callable[[], Composer]) -> None:
    """In the paper's chain its gradient is exactly zero (`test_the_chain_forgets`)."""
    composer = made(kind, 48, 8)
    nodes = [torch.randn(64, 8, requires_grad=True) for _ in range(48)]
    composer(nodes).sum().backward()
    norms = [float(node.grad.norm()) for node in nodes if node.grad is not None]
    assert min(norms) > 0.01 * max(norms)


def test_the_residual_chain_begins_as_the_sum() -> None:
    nodes = list(torch.randn(5, 2, 4))
    found = made(ResidualSequential)(nodes)
    torch.testing.assert_close(found, sum(nodes), rtol=1e-5, atol=1e-6)


def test_the_residual_chain_is_its_recursion() -> None:
    composer, nodes = moved(made(ResidualSequential)), list(torch.randn(5, 2, 4))
    c = torch.zeros(2, 4)
    for node, phi in zip(nodes, composer.phi, strict=True):
        s = c + node
        normed = (s - s.mean(-1, keepdim=True)) / (
            s.var(-1, keepdim=True, correction=0) + 1e-5
        ).sqrt()
        c = s + phi[2](gelu(phi[0](normed)))
    torch.testing.assert_close(composer(nodes), c, rtol=1e-4, atol=1e-5)


def looked(query: Tensor, found: list[Tensor]) -> Tensor:
    """The mean that a query makes of vectors (C,), one image at a time."""
    keys = [c / (c.square().mean() + torch.finfo().eps).sqrt() for c in found]
    scores = torch.stack([query @ key for key in keys]) / len(query) ** 0.5
    weights = scores.exp() / scores.exp().sum()
    return sum((w * c for w, c in zip(weights, found, strict=True)), torch.zeros(len(query)))


def test_depth_attention_looks_at_earlier_nodes_alone() -> None:
    composer, nodes = moved(made(DepthAttention)), list(torch.randn(5, 2, 4))
    for image in range(2):
        found = [nodes[0][image]]
        for i in range(1, 5):
            found.append(nodes[i][image] + looked(composer.query_LC[i - 1], found))
        expected = looked(composer.query_LC[4], found)
        torch.testing.assert_close(composer(nodes)[image], expected, rtol=1e-4, atol=1e-5)


def test_attention_weighs_by_the_image() -> None:
    """An average with fixed weights is linear in what the nodes say; attention is not."""
    nodes = list(torch.randn(5, 2, 4))
    twice = [2 * node + other for node, other in zip(nodes, torch.randn(5, 2, 4), strict=True)]
    others = [b - 2 * a for a, b in zip(nodes, twice, strict=True)]
    composer = moved(made(DepthAttention))
    assert not torch.allclose(composer(twice), 2 * composer(nodes) + composer(others), atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (Sum, 0),
        (ResidualSequential, 48 * 2 * (8 * 8 + 8)),
        (DepthAttention, 48 * 8),
    ],
)
def test_it_has_as_many_numbers_as_its_text_says(
    kind: Callable[[], Composer], numbers: int
) -> None:
    assert sum(p.numel() for p in made(kind, 48, 8).parameters()) == numbers
