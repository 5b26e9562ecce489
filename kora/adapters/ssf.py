"""SSF: a scale and a shift for each channel, after every operation of the backbone.

Shapes: B images, N tokens, O channels of a layer's output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kora.adapters.base import Strategy
from kora.backbone.rewrites import frozen_layer, plain_state, rescaled, rewrite
from kora.backbone.sites import ALL_SITES, find_sites, require_blocks
from kora.backbone.vit import Backbone

__all__ = ["SSF"]


class SSF(Strategy):
    """y = scale * f(x) + shift for each layer f: linear, norm, patch embedding.

    Starts as exactly the frozen backbone: scale 1, shift 0 (the published code draws both with
    standard deviation 0.02 around that: `init_std`). `merged` folds it into the weights; after that
    it costs nothing.
    Source: Lian et al. 2022, arXiv:2210.08823, section 3; 0.21 M parameters on ViT-B.

    Args:
        sites: Linear layers, see LoRA; whole layers only.
        norms: Also the norms of the blocks.
        outer: Also layers outside the blocks: patch embedding, first and final norm.
        blocks: Numbers of the adapted blocks; None means all.
        init_std: Standard deviation of scale and shift at the start, around 1 and 0.

    Raises:
        ValueError: For an unknown or dead site, q, k or v alone, an unknown block, or a negative
            init_std.
    """

    needs_last_tokens = False

    def __init__(
        self,
        sites: Sequence[str] = ALL_SITES,
        *,
        norms: bool = True,
        outer: bool = True,
        blocks: Sequence[int] | None = None,
        init_std: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= init_std < float("inf"):
            raise ValueError(f"SSF: init_std={init_std}, expected a number of 0 or more.")
        self.sites = sites
        self.norms = norms
        self.outer = outer
        self.blocks = blocks
        self.init_std = init_std
        self.inner_affines = nn.ModuleDict()
        self.outer_affines = nn.ModuleDict()

    @property
    def without_effect(self) -> str:
        """Advice on affines that come after what the head reads."""
        return "Leave them out (outer: false), or use a head that reads what they change."

    def attach(self, backbone: Backbone) -> None:
        """Rewrite the layers; 2 O numbers for each."""
        assert not self.inner_affines, "attached twice"
        sites = find_sites(backbone, self.sites, blocks=self.blocks)
        for site in sites:
            if site.rows is not None:
                raise ValueError(
                    f"SSF: site '{site.name}' is only a part of the fused qkv, and a scale and "
                    "shift belongs to a whole layer. Use 'qkv'."
                )
        inner = {site.path: site.key for site in sites}
        if self.norms:
            for i in require_blocks(backbone, self.blocks):
                for path in _norms(backbone, f"blocks.{i}"):
                    name = path.removeprefix(f"blocks.{i}.")
                    inner[path] = f"b{i:02d}_{name.replace('.', '_')}"
        for path, key in inner.items():
            self.inner_affines[key] = self._rewrite(backbone, path)
        for path in _outer_paths(backbone) if self.outer else ():
            self.outer_affines[path.replace(".", "_")] = self._rewrite(backbone, path)

    def merged(self, backbone: Backbone) -> dict[str, Tensor]:
        """Weights of timm's model with scale * W and scale * b + shift.

        Raises:
            ValueError: If a layer that is shifted has no bias to take it.
        """
        state = plain_state(backbone)
        affines = [*self.inner_affines.values(), *self.outer_affines.values()]
        for affine in affines:
            assert isinstance(affine, Affine)
            scale_O, shift_O = affine.scale_O.detach(), affine.shift_O.detach()
            weight, bias = f"{affine.path}.weight", f"{affine.path}.bias"
            dims = (-1,) + (1,) * (state[weight].ndim - 1)
            state[weight] = state[weight] * scale_O.view(dims)
            if bias in state:
                state[bias] = state[bias] * scale_O + shift_O
            elif shift_O.any():
                raise ValueError(
                    f"SSF: layer '{affine.path}' of {backbone.name} has no bias to take its shift, "
                    "so the adapter cannot be folded in. Leave it out (sites, norms, outer), or "
                    "keep the adapter folder."
                )
        return state

    def _rewrite(self, backbone: Backbone, path: str) -> Affine:
        affine = Affine(path, len(frozen_layer(backbone, path).weight), std=self.init_std)
        rewrite(backbone, path, affine)
        return affine


class Affine(nn.Module):
    """Scale (O,) and shift (O,) for the channels of the layer at `path`."""

    def __init__(self, path: str, channels: int, *, std: float) -> None:
        super().__init__()
        self.path = path
        self.scale_O = nn.Parameter(1 + std * torch.randn(channels))
        self.shift_O = nn.Parameter(std * torch.randn(channels))

    def forward(self, layer: nn.Module, x: Tensor) -> Tensor:
        """scale * layer(x) + shift."""
        return rescaled(layer, x, self.scale_O, self.shift_O)


def _norms(backbone: Backbone, below: str) -> list[str]:
    """Paths of the norms below a module, also of those that another strategy computes."""
    names = [name for name, _ in backbone.model.get_submodule(below).named_modules() if name]
    paths = [f"{below}.{name}" for name in names if not name.endswith(".base")]
    return [path for path in paths if _is_norm(frozen_layer(backbone, path))]


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return weight is not None and weight.ndim == 1 and "norm" in type(module).__name__.lower()


def _outer_paths(backbone: Backbone) -> list[str]:
    first = "patch_embed.proj"  # an identity after a stem of convolutions
    paths = [first] if hasattr(frozen_layer(backbone, first), "weight") else []
    there = dict(backbone.model.named_modules())
    norms = [p for p in ("patch_embed.norm", "norm_pre", "norm", "fc_norm") if p in there]
    return paths + [path for path in norms if _is_norm(frozen_layer(backbone, path))]
