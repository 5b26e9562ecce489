"""BitFit: only the biases of the backbone train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from kora.adapters.base import Strategy, first_block
from kora.backbone.rewrites import plain_state
from kora.backbone.sites import require_blocks
from kora.backbone.vit import Backbone

__all__ = ["BitFit"]


class BitFit(Strategy):
    """y = W0 x + b with b trained: the biases of linear layers, norms and convolutions.

    They are the backbone's own tensors: no layer is wrapped or slower, and nothing needs merging.
    A bias needs only the gradient of its layer's output, so no input of a linear layer is kept for
    backward. A key bias shifts all scores of a query equally, and softmax cancels the shift: it is
    counted, as in the literature, but hardly moves.
    Source: Ben Zaken et al. 2021, arXiv:2106.10199.

    Args:
        blocks: Numbers of the blocks whose biases train; None means all.
        outer: Also biases outside the blocks: patch embedding, norms, attention pool.

    Raises:
        ValueError: For an unknown block, or if the chosen part of the backbone has no bias.
    """

    needs_last_tokens = False

    def __init__(self, *, blocks: Sequence[int] | None = None, outer: bool = True) -> None:
        super().__init__()
        self.blocks = blocks
        self.outer = outer
        self._backbone: tuple[Backbone, ...] = ()  # a tuple is not registered as a submodule
        self._names: tuple[str, ...] = ()

    @property
    def without_effect(self) -> str:
        """Advice on biases that come after what the head reads."""
        return "Leave them out (outer: false), or use a head that reads what they change."

    def attach(self, backbone: Backbone) -> None:
        """Choose the biases."""
        assert not self._backbone, "attached twice"
        _ = backbone.sha256  # hash the weights before training
        chosen = require_blocks(backbone, self.blocks)
        names = (name for name, _ in backbone.model.named_parameters() if _is_bias(name))
        self._backbone = (backbone,)
        self._names = tuple(name for name in names if _is_chosen(name, chosen, self.outer))
        if not self._names:
            raise ValueError(
                f"BitFit: {backbone.name} has no bias in blocks {chosen}, so nothing would train. "
                "Use another strategy (LoRA), or a backbone with biases."
            )

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The biases, by timm's names."""
        for name in self._names:
            yield name, self._backbone[0].model.get_parameter(name)

    def untouched_blocks(self) -> int:
        """Those before its first bias; none if one before the blocks trains."""
        before = any(name.startswith(("patch_embed.", "norm_pre.")) for name in self._names)
        return 0 if before else first_block(self._names)

    def merged(self, backbone: Backbone) -> dict[str, Tensor]:
        """The backbone's weights, which include the trained biases."""
        return plain_state(backbone)


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "bias" or last.endswith("_bias")  # q_bias and v_bias of EVA and BEiT


def _is_chosen(name: str, blocks: Sequence[int], outer: bool) -> bool:
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1]) in blocks
    return outer and not parts[0].startswith("head")  # timm's classifier is never called
