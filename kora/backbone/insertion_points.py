"""Insertion points for whole tokens: after a branch of a block, parallel to its MLP, after it.

| position | names in a block | input of the adapter | added to |
| --- | --- | --- | --- |
| `houlsby` | `attn`, `mlp` | output of the branch | the same output, inside the residual |
| `pfeiffer` | `mlp` | output of the MLP branch | the same output, inside the residual |
| `parallel` | `parallel` | tokens that enter the MLP branch, before its norm | its output |
| `post` | `post` | tokens after the block | the same tokens |

The output of a branch is what the block adds to its input: after LayerScale, after the norm of
post-norm blocks, and after drop-path. In every block of timm's ViT, EVA and BEiT files the modules
`drop_path1` and `drop_path2` give exactly that, so forward hooks there need no copy of a block.

Shapes: B batch, N tokens, D width, O output width of a linear layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from kora.backbone.sites import Site, require_blocks
from kora.backbone.vit import Backbone

__all__ = ["Place", "Position", "TokenFunction", "add_at_place", "add_at_site", "find_places"]

Position = Literal["houlsby", "pfeiffer", "parallel", "post"]

#: From the adapter's input and the frozen output there to what is added to that output.
TokenFunction = Callable[[Tensor, Tensor], Tensor]

_PLACES = {
    "houlsby": ("attn", "mlp"),
    "pfeiffer": ("mlp",),
    "parallel": ("parallel",),
    "post": ("post",),
}
_END_OF_BRANCH = {"attn": "drop_path1", "mlp": "drop_path2", "parallel": "drop_path2"}


@dataclass(frozen=True)
class Place:
    """An insertion point for an adapter as wide as the tokens."""

    block: int
    name: str  # attn, mlp, parallel or post
    module: str  # path in timm's model of the module to whose output it adds
    source: str | None  # path of the module whose input the adapter reads; None: `module`'s output

    @property
    def key(self) -> str:
        """Short unique name without dots: `b03_mlp`."""
        return f"b{self.block:02d}_{self.name}"


def find_places(
    backbone: Backbone, position: Position, *, blocks: Sequence[int] | None = None
) -> list[Place]:
    """The insertion points of `position` in `backbone`, in forward order.

    `Backbone.calls` tells what a block calls, and in which order.

    Raises:
        ValueError: For an unknown block, or one that has no such module or never calls it.
    """
    assert position in get_args(Position)
    chosen = require_blocks(backbone, blocks)
    calls = backbone.calls()
    return [_place(backbone, i, name, calls) for i in chosen for name in _PLACES[position]]


def add_at_place(backbone: Backbone, place: Place, function: TokenFunction) -> None:
    """Let `function` add to the tokens (B, N, D) at an insertion point."""
    hook = _Adder(function)
    module = backbone.model.get_submodule(place.module)
    if place.source is not None:
        backbone.model.get_submodule(place.source).register_forward_pre_hook(hook.look)
    module.register_forward_hook(hook.add)


def add_at_site(backbone: Backbone, site: Site, function: TokenFunction) -> None:
    """Let `function` see input (B, N, I) and output (B, N, O) of a site, and add to the output.

    With `wrap` of kora/backbone/sites.py, a function sees only the input.
    """
    hook = _Adder(function, site.rows)
    layer = backbone.model.get_submodule(site.path)
    layer.register_forward_pre_hook(hook.look)
    layer.register_forward_hook(hook.add)


class _Adder:
    """The two hooks of an insertion point; no closures: a backbone can be copied and pickled."""

    def __init__(self, function: TokenFunction, rows: tuple[int, int] | None = None) -> None:
        self.function = function
        self.rows = rows
        self.seen: Tensor | None = None

    def look(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        """Keep the adapter's input until the output is there."""
        self.seen = args[0]

    def add(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """Output plus what the function returns; keeps nothing of the batch."""
        seen, self.seen = self.seen, None
        part = output if self.rows is None else output[..., self.rows[0] : self.rows[1]]
        delta = self.function(part if seen is None else seen, part)
        if self.rows is None:
            return output + delta
        before, after = output[..., : self.rows[0]], output[..., self.rows[1] :]
        return torch.cat((before, part + delta, after), dim=-1)


def _place(backbone: Backbone, block: int, name: str, calls: Sequence[str]) -> Place:
    path = f"blocks.{block}"
    calls = _children(calls, path)
    if name == "post":
        _require(backbone, block, name, "" in calls)
        return Place(block, name, path, None)
    end = _END_OF_BRANCH[name]
    layer = "attn" if name == "attn" else "mlp"
    _require(backbone, block, name, _in_order(calls, layer, end))
    if name == "attn":
        _require(backbone, block, name, "mlp" not in calls or _in_order(calls, end, "mlp"))
    else:
        _require(backbone, block, name, _in_order(calls, "drop_path1", layer))
    source = None
    if name == "parallel":  # the branch starts with its norm, or with the MLP in a post-norm block
        first = "norm2" if _in_order(calls, "norm2", "mlp") else "mlp"
        source = f"{path}.{first}"
    return Place(block, name, f"{path}.{end}", source)


def _require(backbone: Backbone, block: int, name: str, found: bool) -> None:
    if not found:
        kind = type(backbone.model.blocks[block]).__name__
        what = {"attn": "an attention branch", "post": "an output"}.get(name, "an MLP branch")
        raise ValueError(
            f"Block {block} of {backbone.name} ({kind}) has no place '{name}': its forward never "
            f"ends {what} in a module of its own, so an adapter there would have no effect. Use "
            "position=post, or a backbone of timm's VisionTransformer."
        )


def _in_order(calls: Sequence[str], first: str, second: str) -> bool:
    """Whether both are called, once each, the first before the second."""
    once = calls.count(first) == 1 and calls.count(second) == 1
    return once and calls.index(first) < calls.index(second)


def _children(calls: Sequence[str], path: str) -> list[str]:
    """Names of the direct children of a module in the order of their calls; '' is itself."""
    start = f"{path}."
    below = [call[len(start) :] for call in calls if f"{call}.".startswith(start)]
    return [name for name in below if "." not in name]
