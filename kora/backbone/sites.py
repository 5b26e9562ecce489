"""Sites of adapters in a backbone: find them, check that forward calls them, wrap them.

A site is a linear layer of block i, or the rows of one of q, k, v in a fused qkv:

| name | what |
| --- | --- |
| `qkv` | the fused attention input, all rows |
| `q`, `k`, `v` | its first, second, third part of the rows (or timm's separate `q_proj`, ...) |
| `proj` | the attention output |
| `fc1`, `fc2` (or `fc1_g`, `fc1_x` of a SwiGLU) | the MLP |
| `head` | the classifier that timm ships; never called here, so only with `allow_dead_sites` |

Shapes: B batch, N tokens, I input width, O output width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.backbone.frozen_cast import FrozenCast
from kora.backbone.kernels import Update, is_frozen, updated_linear
from kora.backbone.recompute import note
from kora.backbone.vit import Backbone
from kora.console.errors import hint

__all__ = ["ALL_SITES", "Site", "SiteLinear", "find_sites", "require_blocks", "wrap", "wrapped"]

ALL_SITES = ("qkv", "proj", "fc1", "fc2")
_PARTS = {"q": 0, "k": 1, "v": 2}


@dataclass(frozen=True)
class Site:
    """A linear layer, or a part of its rows, to which an adapter may add."""

    block: int | None  # None for the classifier
    name: str  # as the user wrote it: qkv, q, proj, ...
    path: str  # of the linear layer below timm's model
    d_in: int
    d_out: int
    rows: tuple[int, int] | None = None  # of a fused qkv; None for the whole layer

    @property
    def key(self) -> str:
        """Short unique name without dots, in forward order: `b03_qkv`."""
        return self.name if self.block is None else f"b{self.block:02d}_{self.name}"


# From the input (B, N, I) to what is added to the rows of the output, or None to add nothing.
SiteFunction = Callable[[Tensor], "Tensor | None"]
# The same as a low-rank update, for this pass; None if only the function itself can do it.
SiteUpdate = Callable[[], "Update | None"]


class SiteLinear(nn.Module):
    """A frozen linear layer with adapters around it.

    It has no `weight` of its own, so code that would bypass `forward` fails loudly. The adapters'
    functions are not registered here: their parameters live in the strategy, and the state dict of
    the backbone holds frozen tensors only.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.functions: list[tuple[tuple[int, int] | None, SiteFunction, SiteUpdate | None]] = []
        #: See kora/backbone/rewrites.py.
        self.rewrites: list[Callable[[nn.Module, Tensor], Tensor]] = []
        self.cast = FrozenCast()

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, I) to (B, N, O)."""
        updates: list[tuple[tuple[int, int] | None, Update]] = []
        rest = []
        # A compiler decides itself what to keep and what to recompute.
        fused = not self.rewrites and not torch.compiler.is_compiling() and is_frozen(self.base)
        for rows, function, updated in self.functions:
            update = updated() if fused and updated is not None else None
            if update is None:
                rest.append((rows, function))
            else:
                updates.append((rows, update))
        if fused:
            y = updated_linear(self.base, self.cast, x, updates)
        else:
            y = self.rewrites[0](self.base, x) if self.rewrites else self.base(x)
        for rows, function in rest:
            delta = function(x)
            if delta is None:
                continue
            if rows is None:
                y = y + delta
            elif updates or self.rewrites:
                # Autograd forbids writing into the output of our own functions.
                y = y + F.pad(delta, (rows[0], y.shape[-1] - rows[1]))
            else:
                # In place is safe: no backward of a linear layer reads its output.
                y[..., rows[0] : rows[1]] += delta
        return y

    def train(self, mode: bool = True) -> SiteLinear:
        """Forget the cast weights: the frozen ones may have been written to unnoticed."""
        self.cast.clear()
        return super().train(mode)


def find_sites(
    backbone: Backbone,
    names: Sequence[str],
    *,
    blocks: Sequence[int] | None = None,
    allow_dead_sites: bool = False,
) -> list[Site]:
    """The sites that `names` mean in `backbone`, in the order in which forward reaches them.

    `Backbone.calls` tells whether a layer is really called: timm's BEiT and EVA02 read `qkv.weight`
    directly, so an adapter there would do nothing.

    Raises:
        ValueError: For an unknown name or block, no name at all, two names that cover the same
            rows, a site that forward never calls (unless allowed), or whose weight it only reads.
    """
    if isinstance(names, str):
        raise ValueError(f"sites='{names}' is one word; expected a list: sites=['{names}'].")
    if not names:
        raise ValueError("sites is empty, so nothing would train. Use sites=['qkv'] or more.")
    chosen = require_blocks(backbone, blocks)
    called = list(dict.fromkeys(backbone.calls()))
    in_blocks = [name for name in names if name != "head"]
    sites = [_resolve(backbone, i, name) for i in chosen for name in in_blocks]
    sites += [_classifier(backbone) for name in names if name == "head"]
    _refuse_overlap(sites)
    dead = [site for site in sites if site.path not in called]
    if dead and not allow_dead_sites:
        raise ValueError(
            f"Site '{dead[0].name}' of {backbone.name} is never called in forward (its weight is "
            "read directly, or not at all), so an adapter there would have no effect. "
            f"{_instead(backbone, called)}"
        )
    if dead:
        try:
            backbone.calls(lambda twin: [wrapped(twin, site.path) for site in dead])
        except AttributeError as error:  # see SiteLinear
            raise ValueError(
                f"Site '{dead[0].name}' of {backbone.name} cannot be wrapped: forward reads the "
                "weight of its layer directly, and allow_dead_sites is for layers that are not "
                f"used at all. {_instead(backbone, called)}"
            ) from error
    order = {path: position for position, path in enumerate(called)}
    return sorted(sites, key=lambda s: (order.get(s.path, len(order)), s.rows or (0, 0)))


def require_blocks(backbone: Backbone, blocks: Sequence[int] | None) -> list[int]:
    """Numbers of the chosen blocks, in order and each once; None means all, -1 the last one.

    Raises:
        ValueError: For a number outside the depth, or none at all.
    """
    depth = backbone.depth
    chosen = list(range(depth)) if blocks is None else list(blocks)
    outside = [i for i in chosen if not -depth <= i < depth]
    if outside or not chosen:
        raise ValueError(
            f"blocks={chosen} of {backbone.name}: expected numbers from 0 to {depth - 1} (or "
            f"from the end, -1 to -{depth}), at least one."
        )
    return sorted({i % depth for i in chosen})


def wrap(
    backbone: Backbone, site: Site, function: SiteFunction, update: SiteUpdate | None = None
) -> None:
    """Let `function` see the input of a site and, if it returns a tensor, add to its output.

    For a low-rank update, give `update` too: it is then computed with the frozen layer in one
    operation, and `function` is not called.
    """
    wrapped(backbone.model, site.path).functions.append((site.rows, function, update))
    if update is not None and site.block is not None:
        for module in backbone.model.blocks[site.block].modules():
            note(module)


def wrapped(model: Any, path: str) -> SiteLinear:
    """The linear layer at `path` of timm's model, which this wraps if needed."""
    parent_path, _, last = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    layer = getattr(parent, last)
    if not isinstance(layer, SiteLinear):
        layer = SiteLinear(layer)
        setattr(parent, last, layer)
    return layer


def _classifier(backbone: Backbone) -> Site:
    head = getattr(backbone.model, "head", None)
    if not isinstance(head, nn.Linear):
        raise ValueError(
            "Site 'head' is timm's own classifier, which is not there. It exists only with "
            "model.backbone.keep_classifier: true (the published protocol)."
        )
    return Site(None, "head", "head", head.in_features, head.out_features)


def _resolve(backbone: Backbone, block: int, name: str) -> Site:
    linears = _linears(backbone, block)
    named = [path for path in linears if path.rsplit(".", 1)[-1] in (name, f"{name}_proj")]
    if named:  # attention with relative positions has an fc1 and fc2 too, deeper inside
        path = min(named, key=lambda path: path.count("."))
        return Site(block, name, path, linears[path].in_features, linears[path].out_features)
    fused = next((p for p in linears if p.endswith("attn.qkv")), None)
    if name in _PARTS and fused is not None:
        layer = linears[fused]
        part = layer.out_features // 3
        start = _PARTS[name] * part
        return Site(block, name, fused, layer.in_features, part, (start, start + part))
    known = sorted({p.rsplit(".", 1)[-1] for p in linears})
    known += [part for part in _PARTS if fused is not None]
    near = hint(name, known)
    raise ValueError(f"{backbone.name} has no site '{name}'. Known sites: {known}.{near}")


def _linears(backbone: Backbone, block: int) -> dict[str, nn.Linear]:
    found: dict[str, nn.Linear] = {}
    for path, module in backbone.model.blocks[block].named_modules():
        if isinstance(module, SiteLinear):
            found[f"blocks.{block}.{path}"] = module.base
        elif isinstance(module, nn.Linear) and not path.endswith(".base"):
            found[f"blocks.{block}.{path}"] = module
    return found


def _instead(backbone: Backbone, called: Sequence[str]) -> str:
    live = [path.rsplit(".", 1)[-1] for path in _linears(backbone, 0) if path in called]
    return f"Use sites={live}, or a backbone of timm's VisionTransformer."


def _refuse_overlap(sites: Sequence[Site]) -> None:
    taken: dict[str, list[Site]] = {}
    for site in sites:
        for other in taken.get(site.path, []):
            if site.rows is None or other.rows is None or site.rows == other.rows:
                raise ValueError(
                    f"Sites '{other.name}' and '{site.name}' of block {site.block} cover the same "
                    "rows of one layer. Name each row once: 'qkv', or any of 'q', 'k', 'v'."
                )
        taken.setdefault(site.path, []).append(site)
