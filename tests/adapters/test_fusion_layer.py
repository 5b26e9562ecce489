"""Claims about one fusion layer, against the formula, AdapterHub's and full matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kora.adapters.fusion_layer import FusionLayer, LowRankFusionLayer


def drawn(layer: nn.Module, *, std: float = 0.3) -> nn.Module:
    """The layer with random parameters, biases too."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=std)
    return layer


def tokens(width: int, adapters: int) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(6)
    return torch.randn(2, 5, width), [torch.randn(2, 5, width) for _ in range(adapters)]


def test_it_is_the_published_formula_token_by_token() -> None:
    layer, (h, outputs) = drawn(FusionLayer(12)), tokens(12, 3)
    weights = dict(layer.named_parameters())
    mixture, shares = layer(h, outputs)
    for image in range(2):
        for token in range(5):
            q = weights["query.weight"] @ h[image, token] + weights["query.bias"]
            z = [output[image, token] for output in outputs]
            k = [weights["key.weight"] @ one + weights["key.bias"] for one in z]
            s = torch.softmax(torch.stack([q @ one for one in k]), dim=0)
            expected = sum(s[n] * (weights["value.weight"] @ z[n]) for n in range(3))
            torch.testing.assert_close(shares[image, token], s, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(mixture[image, token], expected, rtol=1e-5, atol=1e-5)


def test_it_equals_the_fusion_layer_of_adapterhub() -> None:
    pytest.importorskip("adapters")
    from adapters.configuration import AdapterFusionConfig
    from adapters.methods.modeling import BertFusion

    ours, (h, outputs) = drawn(FusionLayer(32), std=0.2), tokens(32, 3)
    theirs = BertFusion(AdapterFusionConfig.load("dynamic"), 32, 0.0).eval()
    theirs.load_state_dict(ours.state_dict())
    stacked = torch.stack(outputs, dim=2)
    residual = torch.randn(2, 5, 32)
    expected = theirs(h, stacked, stacked, residual.clone())
    torch.testing.assert_close(ours(h, outputs)[0] + residual, expected, rtol=1e-5, atol=1e-5)
    start, other = FusionLayer(32), BertFusion(AdapterFusionConfig.load("dynamic"), 32, 0.0)
    assert torch.equal(start.value.weight, other.value.weight)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_it_has_1_771_008_parameters_at_width_768() -> None:
    """Pfeiffer et al. 2021: 2 (768^2 + 768) + 768^2."""
    assert sum(p.numel() for p in FusionLayer(768).parameters()) == 1_771_008


def test_the_published_start() -> None:
    torch.manual_seed(0)
    layer = FusionLayer(200)
    weight = layer.value.weight
    assert torch.equal(weight.diagonal(), torch.ones(200))
    off = weight[~torch.eye(200, dtype=torch.bool)]
    assert torch.equal(off, torch.full_like(off, 1e-6))
    for part in (layer.query, layer.key):
        assert part.weight.std().item() == pytest.approx(0.02, rel=0.03)
        assert not part.bias.any()


def test_the_penalty_is_the_squared_distance_of_v_from_the_identity() -> None:
    layer = drawn(FusionLayer(12))
    expected = torch.linalg.matrix_norm(torch.eye(12) - layer.value.weight) ** 2
    torch.testing.assert_close(layer.penalty(), expected)


def full(layer: LowRankFusionLayer) -> Tensor:
    return torch.diag(layer.value_D) + layer.value_up_DR @ layer.value_down_RD


def test_low_rank_is_the_same_attention_with_its_own_matrices() -> None:
    layer, (h, outputs) = drawn(LowRankFusionLayer(12, 3)), tokens(12, 2)
    mixture, shares = layer(h, outputs)
    q, z = layer.query(h), torch.stack(outputs, dim=2)
    s = torch.softmax((q[:, :, None] * layer.key(z)).sum(-1), dim=-1)
    torch.testing.assert_close(shares, s, rtol=1e-5, atol=1e-5)
    expected = (s[..., None] * (z @ full(layer).T)).sum(2)
    torch.testing.assert_close(mixture, expected, rtol=1e-5, atol=1e-5)
    distance = (torch.eye(12) - full(layer)).square().sum()
    torch.testing.assert_close(layer.penalty(), distance)


def test_low_rank_starts_at_the_identity_and_has_the_size_of_its_formula() -> None:
    layer = LowRankFusionLayer(96, 4)
    assert torch.equal(full(layer), torch.eye(96))
    assert layer.penalty() == 0
    assert sum(p.numel() for p in layer.parameters()) == 4 * 96 * 4 + 2 * 4 + 96


def test_scores_of_low_rank_start_as_wide_as_those_of_full_rank() -> None:
    torch.manual_seed(0)
    h, z = torch.randn(2, 400, 64), torch.randn(2, 400, 64)

    def spread(layer: FusionLayer | LowRankFusionLayer) -> float:
        with torch.no_grad():
            return float((layer.query(h) * layer.key(z)).sum(-1).std())

    full_rank = [spread(FusionLayer(64)) for _ in range(20)]
    low_rank = [spread(LowRankFusionLayer(64, 4)) for _ in range(20)]
    assert sum(low_rank) == pytest.approx(sum(full_rank), rel=0.25)


def test_a_rank_above_the_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rank=13 is larger.*\(12\).*AdapterFusion"):
        LowRankFusionLayer(12, 13)
