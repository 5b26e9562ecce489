"""KoRA: adapters as the nodes of a directed graph that ends in the representation.

Shapes: B images, C d_comp, D width, L nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kora.adapters.arguments import require_effect, require_positive
from kora.adapters.base import Strategy, first_block
from kora.adapters.frozen_pass import FrozenPass
from kora.adapters.graph.composers import Composer, Sequential
from kora.adapters.graph.feedback import Feedback
from kora.adapters.graph.node_form import NodeForm, PaperForm, RefinedForm
from kora.adapters.graph.nodes import WHOLE, Node
from kora.adapters.graph.readouts import ClsReadout, QueryReadout, Readout
from kora.adapters.low_rank import LowRankDelta
from kora.backbone.frozen_inputs import Inputs, features_from, named_features
from kora.backbone.vit import Backbone, Features

__all__ = ["KoRA", "Node"]

#: Defaults of d_comp: the minimum for a readout to the logits; for others, that of the paper.
_TO_LOGITS, _PAPERS = 64, 8
_NODE = "node."  # prefix of the key of a node in the names of inputs


class KoRA(Strategy):
    """Low-rank adapters whose outputs are composed from early to late layers.

    Nodes: o_i = B_i A_i x_i, p_i = P_i o_i. Composer: p_1 ... p_L to c_L. Readout:
    h_final = h_CLS + alpha * Proj_final(c_L).
    Source: "KoRA: A Framework for Compositional Fine-Tuning" (2025), section 2.

    Args:
        node_form: What the nodes are, where they sit, and what they add there; the paper's by
            default (`PaperForm`).
        d_comp: C, the width of the composition space. None: 8; for a readout to the logits, the
            number of classes, but at least 64.
        alpha: Multiplies the readout, and what is injected.
        composer: How the vectors of the nodes become one; the paper's chain by default.
        readout: Where this vector goes; the paper's Proj_final on CLS by default. A head that reads
            patch tokens (depth, segmentation) does not see that: use TokenReadout with
            `pool: tokens` there, or QueryReadout with the head QuerySegmentation.
        feedback: Also adds the composition so far to the tokens after later blocks.

    Raises:
        ValueError: For a d_comp below 1, an alpha of 0, an unknown or dead site, a pool of `cls` or
            `both` on a backbone without CLS, a TokenReadout without `pool: tokens`, or if nothing
            would ever train because all parts start at zero.
    """

    def __init__(
        self,
        node_form: NodeForm | None = None,
        d_comp: int | None = 8,
        *,
        alpha: float = 1.0,
        composer: Composer | None = None,
        readout: Readout | None = None,
        feedback: Feedback | None = None,
    ) -> None:
        super().__init__()
        require_positive("KoRA", d_comp=8 if d_comp is None else d_comp)
        require_effect("KoRA", alpha)
        self.d_comp = d_comp
        self.alpha = alpha
        self.composer = Sequential() if composer is None else composer
        self.readout = ClsReadout() if readout is None else readout
        self.node_form = PaperForm() if node_form is None else node_form
        self.feedback = feedback
        pool, inner = self.node_form.pool, self.node_form.size_argument
        if self.readout.per_token and pool != "tokens":
            raise ValueError(
                f"KoRA: {type(self.readout).__name__} adds to every token what was composed for "
                f"it, and pool='{pool}' composes one vector an image. Use pool='tokens'."
            )
        self.size_argument = "d_comp" if inner is None else f"node_form.{inner}"
        self.needs_backbone_grad = (self.node_form.injection, feedback) != (None, None)
        self.needs_last_tokens = pool != "cls"
        self.nodes = nn.ModuleDict()
        self.silent = nn.ModuleDict()  # injected corrections that are no nodes
        #: If set, it is called with p_1 ... p_L and c_L of every pass.
        self.observer: Callable[[Sequence[Tensor], Tensor], None] | None = None

    @property
    def label(self) -> str:
        """The label of the nodes: `KoRA`, `KoRA-side`, or `KoRA-refined`, which injects nothing.

        `KoRA-refined-injected` has LoRA at the nodes, `KoRA-over-LoRA` at other sites too. Then
        `-feedback`, if there is one, and `-tokens`, `-queries`, `-logits` or `-pooled`, if the
        readout is not the usual one: to the logits for refined nodes, to the pooled vector for the
        others.
        """
        refined = isinstance(self.node_form, RefinedForm)
        if self.readout.per_token:
            place = "-tokens"
        elif isinstance(self.readout, QueryReadout):
            place = "-queries"
        elif self.readout.in_place:
            place = "-pooled" * refined
        else:
            place = "-logits" * (not refined)
        return f"{self.node_form.label}{'-feedback' * (self.feedback is not None)}{place}"

    @property
    def without_effect(self) -> str:
        """Advice if a part of it does not reach the head."""
        if self.readout.per_token:
            return super().without_effect
        return (
            f"{type(self.readout).__name__} changes only the pooled vector, and this head reads "
            "patch tokens: use readout TokenReadout with pool tokens "
            "(--config configs/adapters/kora_tokens.yaml)."
        )

    def parts(self) -> dict[str, LowRankDelta]:
        """The corrections that it injects, by site: those of nodes, and the others."""
        found = self.silent.items()
        own = ((key, node.delta) for key, node in self._nodes().items() if node.inject)
        return {key: delta for key, delta in (*found, *own) if isinstance(delta, LowRankDelta)}

    def attach(self, backbone: Backbone) -> None:
        """Place the nodes, then build the composer and the readout."""
        assert not self.nodes, "attached twice"
        form = self.node_form
        if self.d_comp is None:
            to_logits = not (self.readout.in_place or self.readout.per_token)
            self.d_comp = max(_TO_LOGITS, self.num_outputs or 0) if to_logits else _PAPERS
        if form.pool in ("cls", "both") and not backbone.has_cls:
            raise ValueError(
                f"KoRA: pool='{form.pool}' reads the CLS token, and {backbone.name} has none. "
                "Use pool='mean'."
            )
        d_comp = self.d_comp
        nodes, others = form.place(backbone, d_comp, self.alpha)
        self.nodes.update(nodes)
        self.silent.update(others)
        self.composer.build(len(self.nodes), d_comp)
        if self.readout.per_token and backbone.pooled_width != backbone.width:
            raise ValueError(
                f"KoRA: {type(self.readout).__name__} adds to tokens and to the pooled vector, and "
                f"those of {backbone.name} have {backbone.width} and {backbone.pooled_width} "
                "channels. Use ClsReadout, or another backbone."
            )
        self.readout.build(d_comp, backbone.pooled_width)
        self.extra_channels = self.readout.extra_channels
        self.query_channels = self.readout.query_channels
        self._refuse_silence(d_comp)
        if self.feedback is not None:
            self.feedback.build(backbone, self._nodes(), self.composer, d_comp, self.alpha)

    def forward(self, backbone: Backbone, images: Tensor) -> Features:
        """Features with the readout of the composition added."""
        return self.read_out(*self.look(backbone, images))

    def look(self, backbone: Backbone, images: Tensor) -> tuple[Features, list[Tensor]]:
        """Run a pass: its features, and what each node kept of it."""
        self.listen()
        if self.feedback is not None:
            self.feedback.sent = []
        return super().forward(backbone, images), self.taken()

    def listen(self) -> None:
        """Let every node keep its pooled tokens of the next pass."""
        for node in self._nodes().values():
            node.listen()

    def taken(self) -> list[Tensor]:
        """What each node kept of the pass that has just ended."""
        return [node.taken() for node in self._nodes().values()]

    def read_out(self, features: Features, taken: Sequence[Tensor]) -> Features:
        """Compose what the nodes kept, and add the readout to the features."""
        sent = [] if self.feedback is None else self.feedback.sent
        rest = list(zip(self._nodes().values(), taken, strict=True))[len(sent) :]
        vectors = sent + [node.vector(kept) for node, kept in rest]
        composed = self.composer(vectors)
        if self.observer is not None:
            self.observer(vectors, composed)
        adapted: Features = self.readout(features, composed, self.alpha)
        return adapted

    def frozen_pass(self) -> FrozenPass:
        """For a side network."""
        return super().frozen_pass() if self.needs_backbone_grad else SidePass(self)

    def untouched_blocks(self) -> int:
        """Those before its first node or injection."""
        return first_block([*self.nodes, *self.silent])

    def _refuse_silence(self, d_comp: int) -> None:
        """Refuse nodes and readout that both start at zero: neither would get a gradient."""
        first = next(iter(self._nodes().values()))
        place = next(first.parameters()).device
        if place.type == "meta" or not (first.starts_silent and self.readout.starts_closed):
            return
        with torch.no_grad():
            silence = torch.zeros(1, d_comp, device=place)
            composed = self.composer([silence] * len(self.nodes))
        if composed.any():
            return
        raise ValueError(
            "KoRA: nothing of the composition would ever train: the nodes send zero at the start, "
            f"{type(self.composer).__name__} makes zero of that, and {type(self.readout).__name__} "
            "starts at zero too. Use nodes that start at random (matrix: PlainMatrix with init: "
            "default), composer Sequential, or a readout that starts elsewhere (ClsReadout with "
            "init: default, LogitReadout with init: orthogonal)."
        )

    def _nodes(self) -> dict[str, Node]:
        return {key: node for key, node in self.nodes.items() if isinstance(node, Node)}


class SidePass(FrozenPass):
    """The features, and what each node of a side network keeps of the pass."""

    def __init__(self, kora: KoRA) -> None:
        self.kora = kora
        self.keeps_tokens = kora.node_form.pool in WHOLE
        self.reads = ("patches", "prefix") if kora.readout.per_token else ()

    def key(self) -> dict[str, Any]:
        """Which nodes there are, and how they pool."""
        return {"nodes": list(self.kora.nodes), "pool": self.kora.node_form.pool}

    def listen(self) -> None:
        """Let every node keep its pooled tokens."""
        self.kora.listen()

    def taken(self, features: Features) -> dict[str, Tensor]:
        """The features by name, and (B, ...) of each node as `node.` and its key."""
        of_nodes = zip(self.kora.nodes, self.kora.taken(), strict=True)
        return named_features(features) | {f"{_NODE}{key}": kept for key, kept in of_nodes}

    def features(self, inputs: Inputs) -> Features:
        """Features with the readout of the side network added."""
        taken = [inputs[f"{_NODE}{key}"] for key in self.kora.nodes]
        return self.kora.read_out(features_from(inputs), taken)
