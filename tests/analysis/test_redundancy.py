"""Claims about how much of what nodes say another one says as well."""

from __future__ import annotations

import math

import pytest
import torch

from kora.analysis.redundancy import redundancy


def test_it_is_one_for_nodes_that_say_the_same_and_zero_for_orthogonal_ones() -> None:
    p = torch.randn(4, 6)
    assert redundancy([p, -2 * p, 0.1 * p]) == pytest.approx(1)
    assert redundancy(list(torch.eye(6)[:, None])) == pytest.approx(0)


def test_it_is_the_mean_of_the_cosines_of_pairs() -> None:
    nodes = list(torch.randn(3, 5, 4))
    found = [
        abs(float(torch.nn.functional.cosine_similarity(nodes[i][b], nodes[j][b], dim=0)))
        for b in range(5)
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert redundancy(nodes) == pytest.approx(sum(found) / len(found), rel=1e-5)


def test_of_random_directions_it_is_what_its_text_says() -> None:
    torch.manual_seed(0)
    nodes = list(torch.randn(8, 400, 64))
    assert redundancy(nodes) == pytest.approx(math.sqrt(2 / (math.pi * 64)), rel=0.03)


def test_tokens_count_each_and_a_silent_node_is_orthogonal_to_all() -> None:
    nodes = list(torch.randn(3, 2, 5, 4))
    flat = [node.flatten(0, 1) for node in nodes]
    assert redundancy(nodes) == pytest.approx(redundancy(flat), rel=1e-5)
    assert redundancy([nodes[0], torch.zeros(2, 5, 4)]) == 0
    assert redundancy(nodes[:1]) == 0
