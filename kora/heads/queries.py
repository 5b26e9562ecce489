"""A decoder with a query for each class, for frozen backbones.

Shapes: B images, N patch tokens (rows x columns of the grid), D width of the backbone, K classes, E
width of the decoder, C width of a composition, h and w four times the grid
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.vit import Backbone, Features
from kora.heads.levels import four_blocks
from kora.heads.segmentation import SegmentationHead

__all__ = ["QuerySegmentation"]

_LEVELS = 4


class QuerySegmentation(SegmentationHead):
    """K learnt queries read four levels; the logit of a pixel is its product with each query.

    Each of the four layers lets the queries attend to the normalised tokens of one level, from
    early to late, then to each other, then through an MLP. The pixels are the sum of the four
    levels, enlarged four times by transposed convolutions. A composed vector that the adapter sends
    (`QueryReadout`) is added to the queries first.

    Source: queries of classes and the product with pixels as in Segmenter (Strudel et al. 2021,
    arXiv:2105.05633, section 3.2); a plain decoder on four levels of a frozen encoder as in the
    code that tue-mps/pmt released.

    Args:
        width: E.
        heads: Heads of the attention; they must divide E.
        mlp_ratio: Width of the MLPs, in E.
        dropout: Probability with which numbers of the queries are dropped after attention and MLP,
            in training.

    Raises:
        ValueError: For a width that `heads` does not divide, numbers below 1, or a dropout outside
            [0, 1).
    """

    reads = ("levels", "query")
    suffix = "-queries"

    def __init__(
        self, *, width: int = 256, heads: int = 8, mlp_ratio: int = 4, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if min(width, heads, mlp_ratio) < 1 or width % heads:
            raise ValueError(
                f"QuerySegmentation: width={width}, heads={heads}, mlp_ratio={mlp_ratio}; expected "
                "1 or more each, and a width that the heads divide (256 and 8 are usual)."
            )
        if not 0 <= dropout < 1:
            raise ValueError(
                f"QuerySegmentation: dropout={dropout}, expected a probability in [0, 1)."
            )
        self.width = width
        self.heads = heads
        self.mlp_ratio = mlp_ratio
        self.dropout = dropout

    def blocks(self, depth: int) -> tuple[int, ...]:
        """Four equally spaced blocks."""
        return four_blocks(depth)

    def build(self, backbone: Backbone, num_classes: int, composed: int | None = None) -> None:
        """Create queries, layers and convolutions."""
        self._adopt(backbone)
        width = self.width
        self.norms = nn.ModuleList(nn.LayerNorm(backbone.width) for _ in range(_LEVELS))
        self.project = nn.ModuleList(nn.Linear(backbone.width, width) for _ in range(_LEVELS))
        self.query_KE = nn.Parameter(torch.randn(num_classes, width) * 0.02)
        self.layers = nn.ModuleList(
            _Layer(width, self.heads, self.mlp_ratio, self.dropout) for _ in range(_LEVELS)
        )
        self.enlarge = nn.Sequential(_Enlarge(width), _Enlarge(width))
        self.last_norm = nn.LayerNorm(width)
        self.to_pixels = nn.Linear(width, width)
        self.bias_K = nn.Parameter(torch.zeros(num_classes))
        if composed is not None:  # a map of the composition, with a scale for each class
            self.scale_KC = nn.Parameter(torch.ones(num_classes, composed))
            self.from_composed = nn.Linear(composed, width, bias=False)
            nn.init.zeros_(self.from_composed.weight)

    def forward(self, features: Features) -> Tensor:
        """Logits (B, K, 4 * rows, 4 * columns)."""
        rows, columns = self._check(features, _LEVELS)
        tokens = [
            project(norm(level.patches))
            for norm, project, level in zip(self.norms, self.project, features.levels, strict=True)
        ]
        query_BKE = self.query_KE.expand(tokens[0].shape[0], -1, -1)
        if features.query is not None:
            query_BKE = query_BKE + self.from_composed(features.query[:, None] * self.scale_KC)
        for layer, tokens_BNE in zip(self.layers, tokens, strict=True):
            query_BKE = layer(query_BKE, tokens_BNE)
        summed_BNE = torch.stack(tokens).sum(dim=0)
        pixels_BEhw = self.enlarge(torch.unflatten(summed_BNE.mT, -1, (rows, columns)))
        kernel_BKE = self.to_pixels(self.last_norm(query_BKE)) * self.width**-0.5
        logits_BKhw = torch.einsum("bke,behw->bkhw", kernel_BKE, pixels_BEhw)
        return logits_BKhw + self.bias_K[:, None, None]


class _Layer(nn.Module):
    """Queries attend to tokens, then to each other, then an MLP; each adds to them."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.to_tokens = _Attention(width, heads)
        self.to_queries = _Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, mlp_ratio * width),
            nn.GELU(),
            nn.Linear(mlp_ratio * width, width),
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, query_BKE: Tensor, tokens_BNE: Tensor) -> Tensor:
        query_BKE = query_BKE + self.drop(self.to_tokens(query_BKE, tokens_BNE))
        query_BKE = query_BKE + self.drop(self.to_queries(query_BKE, None))
        changed: Tensor = query_BKE + self.drop(self.mlp(query_BKE))
        return changed


class _Attention(nn.Module):
    """Attention of the normalised queries to tokens, or to themselves."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.to_query = nn.Linear(width, width)
        self.to_key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, query_BKE: Tensor, tokens_BNE: Tensor | None) -> Tensor:
        normed_BKE = self.norm(query_BKE)
        read_BNE = normed_BKE if tokens_BNE is None else tokens_BNE
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_query(normed_BKE), *self.to_key_value(read_BNE).chunk(2, dim=-1))
        )
        read = F.scaled_dot_product_attention(query, key, value)
        changed: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return changed


class _Enlarge(nn.Module):
    """Twice the size: a transposed convolution, GELU, a 3x3 step a channel, and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.mix = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm = nn.GroupNorm(1, width)

    def forward(self, x_BEhw: Tensor) -> Tensor:
        enlarged: Tensor = self.norm(self.mix(F.gelu(self.up(x_BEhw))))
        return enlarged
