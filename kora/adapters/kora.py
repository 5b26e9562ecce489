"""KoRA: adapters as the nodes of a directed graph that ends in the representation.

Shapes: B images, N tokens, I input width, O output width, R rank, C d_comp, D width, L nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from kora.adapters.arguments import (
    require_choice,
    require_effect,
    require_positive,
    require_probability,
)
from kora.adapters.base import Strategy
from kora.adapters.composers import Composer, Sequential
from kora.adapters.feedback import Feedback
from kora.adapters.frozen_pass import FrozenPass
from kora.adapters.low_rank import LowRankDelta
from kora.adapters.node_form import NodeForm
from kora.adapters.nodes import WHOLE, Node, PaperNode, Pool, RefinedNode, overlap
from kora.adapters.readouts import ClsReadout, Readout
from kora.backbone.frozen_inputs import Inputs, features_from, named_features
from kora.backbone.sites import ALL_SITES, Site, find_sites, wrap
from kora.backbone.vit import Backbone, Features

__all__ = ["KoRA", "Node"]

_NODE = "node."  # before the key of a node, in the names of its inputs


class KoRA(Strategy):
    """Low-rank adapters whose outputs are composed from early to late layers.

    Nodes: o_i = B_i A_i x_i, p_i = P_i o_i. Composer: p_1 ... p_L to c_L. Readout:
    h_final = h_CLS + alpha * Proj_final(c_L).
    Source: "KoRA: A Framework for Compositional Fine-Tuning" (2025), section 2.

    Args:
        rank: R of A (R, d_in) and B (d_out, R).
        d_comp: C, the width of the composition space.
        alpha: Multiplies the readout, and o_i where it is injected.
        inject: Also add alpha * o_i at the site itself, as equation (1) does. False is the
            published notebook's form: a side network; no gradient passes through the backbone,
            which then runs without autograd.
        pool: What of the tokens a node sends: their `mean` (the notebook), the `cls` token, or
            all `tokens` (a composition for each token); with a `node_form` also `both` mean and
            CLS, or a mean weighted by a learned `attention`.
        sites: See LoRA.
        blocks: Numbers of the adapted blocks, negative ones from the end; None means all.
        composer: How the vectors of the nodes become one; the paper's chain by default.
        node_form: What the nodes look like; None is the paper's P B A of the tokens as they are.
        feedback: Also adds what is composed so far to the tokens behind later blocks.
        node_sites: Which of the adapted sites are nodes; None means all. The others inject alone,
            as LoRA does, so this is for `inject`.
        node_blocks: In which of the adapted blocks they are; None means all.
        dropout: Probability with which inputs of A are dropped in training, as LoRA's, so this is
            for `inject`. A node without node_form sends P B A of what is left.
        readout: Where it goes; the paper's Proj_final on CLS by default. A head that reads patch
            tokens (depth) sees nothing of that: use TokenReadout with `pool: tokens` there.

    Raises:
        ValueError: For a rank or d_comp below 1, an alpha of 0, an unknown pool, an unknown or dead
            site, a pool of `cls` or `both` on a backbone without CLS or of `both` or `attention`
            without a node_form, a TokenReadout without `pool: tokens`, nodes at places that are not
            adapted or, without `inject`, places that are no nodes, a dropout outside [0, 1) or
            without `inject`, a soft penalty where no two nodes read the same width, or where
            nothing would ever train as all of it starts at zero.
    """

    size_argument = "rank"

    def __init__(
        self,
        rank: int = 8,
        d_comp: int = 8,
        *,
        alpha: float = 1.0,
        inject: bool = True,
        pool: Pool = "mean",
        sites: Sequence[str] = ALL_SITES,
        blocks: Sequence[int] | None = None,
        composer: Composer | None = None,
        readout: Readout | None = None,
        node_form: NodeForm | None = None,
        feedback: Feedback | None = None,
        node_sites: Sequence[str] | None = None,
        node_blocks: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        require_positive("KoRA", rank=rank, d_comp=d_comp)
        require_effect("KoRA", alpha)
        require_probability("KoRA", dropout=dropout)
        require_choice("KoRA", "pool", pool, get_args(Pool))
        self.rank = rank
        self.d_comp = d_comp
        self.alpha = alpha
        self.inject = inject
        self.pool = pool
        self.sites = sites
        self.blocks = blocks
        self.composer = Sequential() if composer is None else composer
        self.readout = ClsReadout() if readout is None else readout
        self.node_form = node_form
        self.feedback = feedback
        self.node_sites = node_sites
        self.node_blocks = node_blocks
        self.dropout = dropout
        if dropout and not inject:
            raise ValueError(
                f"KoRA: dropout={dropout} is of what is injected, and inject=False injects "
                "nothing. For what nodes read, use node_form: NodeForm with dropout, or inject."
            )
        if not inject and (node_sites, node_blocks) != (None, None):
            raise ValueError(
                f"KoRA: node_sites={node_sites} and node_blocks={node_blocks} say which of the "
                "adapters are nodes, and with inject=False an adapter that is none does nothing. "
                "Give the places of the nodes as sites and blocks, or inject."
            )
        if node_form is None and pool in ("both", "attention"):
            raise ValueError(
                f"KoRA: pool='{pool}' is for refined nodes. Set node_form (class_path: "
                "kora.adapters.NodeForm), or use pool='mean'."
            )
        if self.readout.per_token and pool != "tokens":
            raise ValueError(
                f"KoRA: {type(self.readout).__name__} adds to every token what was composed for "
                f"it, and pool='{pool}' composes one vector an image. Use pool='tokens'."
            )
        if node_form is not None and node_form.direct and not inject:
            self.size_argument = "d_comp"  # there is nothing of low rank
        self.needs_backbone_grad = inject or feedback is not None
        self.needs_last_tokens = pool != "cls"
        self.nodes = nn.ModuleDict()
        self.silent = nn.ModuleDict()  # what injects and is no node
        #: Given p_1 ... p_L and c_L of every pass, as long as somebody reads them.
        self.observer: Callable[[Sequence[Tensor], Tensor], None] | None = None

    @property
    def label(self) -> str:
        """`KoRA` of the paper, `KoRA-side` where nothing is injected.

        With refined nodes `KoRA-refined`, which injects nothing; `KoRA-refined-injected`;
        `KoRA-over-LoRA`, where only some of the adapted sites are nodes. With `-feedback`, and
        `-tokens` or, for refined nodes, `-pooled` where the composition does not go to the logits.
        """
        feedback = "-feedback" * (self.feedback is not None)
        place = "-tokens" * self.readout.per_token
        if self.node_form is None:
            name = f"KoRA{'' if self.inject else '-side'}"
        elif (self.node_sites, self.node_blocks) != (None, None):
            name = "KoRA-over-LoRA"
        else:
            name = f"KoRA-refined{'-injected' * self.inject}"
        if self.node_form is not None and self.readout.in_place and not place:
            place = "-pooled"
        if self.node_form is None and not self.readout.in_place:
            place = "-logits"
        return f"{name}{feedback}{place}"

    @property
    def without_effect(self) -> str:
        """What to do where a part of it does not reach the head."""
        if self.readout.per_token:
            return super().without_effect
        return (
            f"{type(self.readout).__name__} changes the pooled vector alone, and this head reads "
            "patch tokens: use readout TokenReadout with pool tokens "
            "(--config configs/adapters/kora_tokens.yaml)."
        )

    def parts(self) -> dict[str, LowRankDelta]:
        """The corrections that it injects, by site: those of nodes and those that are none."""
        if not self.inject:
            return {}
        found = [*self.silent.items(), *((k, node.delta) for k, node in self._nodes().items())]
        return {key: delta for key, delta in found if isinstance(delta, LowRankDelta)}

    def attach(self, backbone: Backbone) -> None:
        """Place the nodes, then size the composer and the readout."""
        assert not self.nodes, "attached twice"
        if self.pool in ("cls", "both") and not backbone.has_cls:
            raise ValueError(
                f"KoRA: pool='{self.pool}' reads the CLS token, and {backbone.name} has none. "
                "Use pool='mean'."
            )
        adapted = find_sites(backbone, self.sites, blocks=self.blocks)
        places = self._node_places(backbone, adapted)
        self._require_pairs(places)
        for site in adapted:
            if site not in places:
                delta = LowRankDelta(site, self.rank, alpha=self.alpha, dropout=self.dropout)
                self.silent[site.key] = delta
                wrap(backbone, site, delta, delta.update)
                continue
            node = self._node(site)
            self.nodes[site.key] = node
            node.add_to(backbone, site)
        self.composer.build(len(self.nodes), self.d_comp)
        if self.readout.per_token and backbone.pooled_width != backbone.width:
            raise ValueError(
                f"KoRA: {type(self.readout).__name__} adds to tokens and to the pooled vector, and "
                f"those of {backbone.name} have {backbone.width} and {backbone.pooled_width} "
                "channels. Use ClsReadout, or another backbone."
            )
        self.readout.build(self.d_comp, backbone.pooled_width)
        self.extra_width = self.readout.extra_width
        self.extra_init = self.readout.extra_init
        self._refuse_silence()
        if self.feedback is not None:
            self.feedback.build(backbone, self._nodes(), self.composer, self.d_comp, self.alpha)

    def forward(self, backbone: Backbone, images: Tensor) -> Features:
        """Features with the composition read out."""
        return self.read_out(*self.look(backbone, images))

    def look(self, backbone: Backbone, images: Tensor) -> tuple[Features, list[Tensor]]:
        """The features of a pass, and what each node kept of it."""
        nodes = self._nodes().values()
        for node in nodes:
            node.listen()
        if self.feedback is not None:
            self.feedback.sent = []
        return super().forward(backbone, images), [node.taken() for node in nodes]

    def read_out(self, features: Features, taken: Sequence[Tensor]) -> Features:
        """Features with what the nodes kept composed and read out."""
        sent = [] if self.feedback is None else self.feedback.sent
        rest = list(zip(self._nodes().values(), taken, strict=True))[len(sent) :]
        vectors = sent + [node.vector(kept) for node, kept in rest]
        composed = self.composer(vectors)
        if self.observer is not None:
            self.observer(vectors, composed)
        adapted: Features = self.readout(features, composed, self.alpha)
        return adapted

    def frozen_pass(self) -> FrozenPass:
        """Of a side network, whose nodes send no tokens."""
        if self.needs_backbone_grad:
            return super().frozen_pass()
        if self.pool in WHOLE:
            raise ValueError(
                f"adapter.pool is '{self.pool}': to keep all tokens of every site takes longer to "
                "read than the backbone to compute"
            )
        return SidePass(self)

    def penalty(self) -> Tensor | None:
        """What the matrices of the nodes have in common, where that is to be small."""
        if self.node_form is None or self.node_form.orthogonal != "soft":
            return None
        nodes = [node for node in self._nodes().values() if isinstance(node, RefinedNode)]
        return self.node_form.penalty * overlap(nodes)

    def _require_pairs(self, places: list[Site]) -> None:
        """A penalty on what nodes have in common needs two that can have something."""
        if self.node_form is None or self.node_form.orthogonal != "soft":
            return
        widths = [site.d_in for site in places]
        if len(set(widths)) == len(widths):
            raise ValueError(
                "KoRA: orthogonal='soft' penalises what two nodes have in common, and no two of "
                f"the {len(widths)} nodes read the same width ({', '.join(map(str, widths))}). "
                "Place nodes in more blocks, or leave orthogonal out."
            )

    def _refuse_silence(self) -> None:
        """A product of two zeros has no gradient: neither would ever leave zero."""
        first = next(iter(self._nodes().values()))
        place = next(first.parameters()).device
        if place.type == "meta" or not (first.starts_silent and self.readout.starts_closed):
            return
        with torch.no_grad():
            silence = torch.zeros(1, self.d_comp, device=place)
            composed = self.composer([silence] * len(self.nodes))
        if composed.any():
            return
        raise ValueError(
            "KoRA: nothing of the composition would ever train: the nodes send zero at the start, "
            f"{type(self.composer).__name__} makes zero of that, and {type(self.readout).__name__} "
            "starts at zero too. Use nodes that start at random (node_form: NodeForm with init: "
            "default), composer Sequential, or a readout that starts elsewhere (ClsReadout with "
            "init: default, LogitReadout with init: orthogonal)."
        )

    def _node_places(self, backbone: Backbone, adapted: list[Site]) -> list[Site]:
        """Those of the adapted sites that are nodes."""
        if self.node_sites is None and self.node_blocks is None:
            return adapted
        names = self.sites if self.node_sites is None else self.node_sites
        blocks = self.blocks if self.node_blocks is None else self.node_blocks
        places = find_sites(backbone, names, blocks=blocks)
        strange = [site.key for site in places if site not in adapted]
        if strange:
            raise ValueError(
                f"KoRA: node_sites={names} and node_blocks={blocks} name {strange[0]}, which is "
                f"not adapted: sites={list(self.sites)}, blocks={self.blocks}. Add it there, or "
                "leave it out here."
            )
        return places

    def _node(self, site: Site) -> Node:
        options: dict[str, Any] = {"rank": self.rank, "d_comp": self.d_comp, "alpha": self.alpha}
        options |= {"inject": self.inject, "pool": self.pool, "dropout": self.dropout}
        if self.node_form is None:
            return PaperNode(site, **options)
        return RefinedNode(site, self.node_form, **options)

    def _nodes(self) -> dict[str, Node]:
        return {key: node for key, node in self.nodes.items() if isinstance(node, Node)}


class SidePass(FrozenPass):
    """The features, and beside them what each node of a side network keeps of the pass."""

    def __init__(self, kora: KoRA) -> None:
        self.kora = kora

    def key(self) -> dict[str, Any]:
        """Which nodes there are, and how they pool."""
        return {"nodes": list(self.kora.nodes), "pool": self.kora.pool}

    def inputs(self, backbone: Backbone, images: Tensor) -> dict[str, Tensor]:
        """The features by their names, and (B, ...) of each node under `node.` and its key."""
        features, taken = self.kora.look(backbone, images)
        of_nodes = zip(self.kora.nodes, taken, strict=True)
        return named_features(features) | {f"{_NODE}{key}": kept for key, kept in of_nodes}

    def features(self, inputs: Inputs) -> Features:
        """What the side network makes of them."""
        taken = [inputs[f"{_NODE}{key}"] for key in self.kora.nodes]
        return self.kora.read_out(features_from(inputs), taken)
