"""Claims about composers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from kora.adapters import Sequential


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
