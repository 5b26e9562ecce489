"""What Bottleneck and VPT do to the tokens of images.

Shapes: B images, N tokens, K prompts, D width.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from kora.adapters.bottleneck import Bottleneck
from kora.adapters.vpt import VPT, Prompt
from kora.analysis.quantity import Place, Quantity, Spectrum
from kora.analysis.updates import places_of
from kora.backbone.vit import Backbone

__all__ = ["AdapterShares", "PromptShares"]


class AdapterShares:
    """For Bottleneck: the norm of what each adapter adds, relative to the tokens that it reads."""

    def __init__(self, strategy: Bottleneck) -> None:
        self._places = places_of(strategy, strategy.adapters)
        self._adapters = dict(strategy.adapters.items())
        self._added = dict.fromkeys(self._adapters, 0.0)
        self._read = dict.fromkeys(self._adapters, 0.0)

    def listening(self) -> ExitStack:
        """Gather from every pass inside."""
        hooks = ExitStack()
        for key, module in self._adapters.items():
            hook = module.register_forward_hook(lambda _, x, y, key=key: self._see(key, x[0], y))
            hooks.enter_context(hook)
        return hooks

    def quantities(self) -> list[Quantity | Spectrum]:
        """The relative norm of what is added, as one quantity."""
        shares: dict[Place, float | None] = {
            self._places[key]: self._added[key] / self._read[key] if self._read[key] else None
            for key in self._adapters
        }
        return [
            Quantity(
                "added_share", "||added|| / ||read||",
                "Norm of what the adapter adds to a token, over that of the token that it reads; "
                "both summed over all tokens of all images.",
                shares,
            )
        ]  # fmt: skip

    def _see(self, key: str, x: Tensor, added: Tensor) -> None:
        self._added[key] += _sum_of_norms(added)
        self._read[key] += _sum_of_norms(x)


class PromptShares:
    """For VPT: the norm of the prompts, alone and relative to the image tokens that they join."""

    def __init__(self, strategy: VPT, backbone: Backbone) -> None:
        self._places = places_of(strategy, strategy.tokens)
        self._prompts = {
            key: prompt.prompt_KD.detach()
            for key, prompt in strategy.tokens.items()
            if isinstance(prompt, Prompt)
        }
        self._blocks = backbone.model.blocks
        self._sums = dict.fromkeys(self._prompts, 0.0)
        self._tokens = 0

    def listening(self) -> ExitStack:
        """Gather from every pass inside."""
        hooks = ExitStack()
        for key in self._prompts:
            hook = self._block(key).register_forward_pre_hook(
                lambda _, inputs, key=key: self._see(key, inputs[0]),
                prepend=True,  # before the prompts join
            )
            hooks.enter_context(hook)
        return hooks

    def quantities(self) -> list[Quantity | Spectrum]:
        """Norms of the prompts, alone and relative to the tokens."""
        norms: dict[Place, float | None] = {}
        shares: dict[Place, float | None] = {}
        for key, prompt_KD in self._prompts.items():
            norms[self._places[key]] = mean = _sum_of_norms(prompt_KD) / len(prompt_KD)
            token = self._sums[key] * len(self._prompts) / max(self._tokens, 1)
            shares[self._places[key]] = mean / token if token else None
        return [
            Quantity("prompt_norm", "||prompt||", "Mean norm of the prompts of a block.", norms),
            Quantity(
                "prompt_share", "||prompt|| / ||token||",
                "Mean norm of the prompts, over that of the tokens of the image which enter the "
                "same block.",
                shares,
            ),
        ]  # fmt: skip

    def _block(self, key: str) -> nn.Module:
        block: nn.Module = self._blocks[int(self._places[key][0])]
        return block

    def _see(self, key: str, x: Any) -> None:
        self._sums[key] += _sum_of_norms(x)
        self._tokens += x.shape[0] * x.shape[1]


def _sum_of_norms(tokens: Tensor) -> float:
    """Sum of the norms of all tokens."""
    return float(torch.linalg.vector_norm(tokens.float(), dim=-1).double().sum())
