"""AdapterFusion: frozen adapters of earlier runs, and attention over their outputs.

Shapes: B images, T tokens, N source adapters, I input width and D width of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kora.adapters.arguments import require_positive
from kora.adapters.base import Strategy
from kora.adapters.fusion_layer import FusionLayer, LowRankFusionLayer
from kora.adapters.fusion_sources import FusionSource, Spot, is_there, read_sources, recalled
from kora.backbone.vit import Backbone

__all__ = ["AdapterFusion", "LowRankFusion"]


class FusedPlace(nn.Module):
    """The frozen adapters at one insertion point, and the layer that mixes them."""

    def __init__(self, layer: FusionLayer | LowRankFusionLayer, adapters: Sequence[nn.Module]):
        super().__init__()
        self.layer = layer
        self.adapters = nn.ModuleList(adapters)
        self.watched = False
        self.seen = 0  # tokens
        self.share_N: Tensor | None = None  # mean over these tokens

    def train(self, mode: bool = True) -> FusedPlace:
        """The adapters stay in eval mode: their dropout and drop-path never run."""
        super().train(mode)
        self.adapters.train(False)
        return self

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """The mixture (B, T, D) for the adapters' input x (B, T, I) and the frozen output y."""
        mixture: Tensor
        mixture, shares = self.layer(y, [adapter(x) for adapter in self.adapters])
        if self.watched:
            self._count(shares.detach())
        return mixture

    def _count(self, shares: Tensor) -> None:
        flat = shares.float().flatten(0, -2)
        mean_N = flat.mean(dim=0)
        if self.share_N is None:
            self.share_N = torch.zeros_like(mean_N)
        self.seen += len(flat)
        self.share_N = self.share_N + (mean_N - self.share_N) * (len(flat) / self.seen)


class FusedRuns:
    """The source adapters of a fusion: read from their folders, or from a saved file of the fusion.

    Args:
        sources: Adapter folders, or configs of the source runs.
        places: Insertion points of the fusion; they hold the frozen adapters once it is attached.
    """

    argument = "sources"

    def __init__(self, sources: Sequence[str], places: nn.ModuleDict) -> None:
        self.sources = sources
        self.places = places
        self.found: list[FusionSource] = []
        self._located: dict[str, str] = {}  # adapter folders of the sources that are configs
        self._kept: Any = ()  # sources from a file of this fusion, until it is attached
        self._alone = False  # whether they are used whatever lies in the folders

    def read(self, backbone: Backbone) -> list[Spot]:
        """Read the sources: their insertion points with the adapters."""
        self.found, spots = read_sources(self._folders(), backbone, self._kept, alone=self._alone)
        self._kept = ()
        return spots

    def tensors(self) -> dict[str, Tensor]:
        """The frozen adapters, by their names in the fusion."""
        return {
            f"places.{key}.adapters.{name}": parameter
            for key, place in self.places.items()
            if isinstance(place, FusedPlace)
            for name, parameter in place.adapters.named_parameters()
        }

    def configs(self) -> list[str]:
        """The sources that are configs."""
        return [source for source in self.sources if source.endswith((".yaml", ".yml"))]

    def locate(self, folders: Mapping[str, str]) -> None:
        """Set the adapter folders of the runs of `configs`."""
        self._located = dict(folders)

    def missing(self) -> list[str]:
        """Sources that have no folder and that no recalled file holds."""
        held = len(self._kept) == len(self.sources)
        return [source for source in self._folders() if not (held or is_there(source))]

    def recall(
        self,
        record: Mapping[str, Any],
        tensors: Mapping[str, Tensor],
        origin: str,
        *,
        alone: bool = False,
    ) -> None:
        """Let the sources in a saved file replace missing folders."""
        self._kept = recalled(record.get("sources", ()), tensors, origin)
        self._alone = alone and len(self._kept) == len(self.sources)

    def take_over(self, other: FusedRuns) -> None:
        """Take over the sources that another fusion has found."""
        self._located, self._kept, self._alone = other._located, other._kept, other._alone

    def origins(self) -> dict[str, Any]:
        """Strategy, arguments, backbone and run of each source."""
        return {"sources": [source.kept() for source in self.found]}

    def verify(self, stored: Mapping[str, Tensor], origin: str) -> None:
        """Refuse a file that was trained on other source adapters than these.

        Raises:
            ValueError: With the first place that differs.
        """
        for name, mine in self.tensors().items():
            if not torch.equal(stored[name].to(mine.device), mine):
                place, _, rest = name.removeprefix("places.").partition(".adapters.")
                number = int(rest.partition(".")[0])
                raise ValueError(
                    f"{origin} was trained on another source adapter than sources[{number}] = "
                    f"{self.sources[number]} (they differ at {place}). Name the source adapters "
                    "that it was trained on, in the same order."
                )

    def _folders(self) -> list[str]:
        return [self._located.get(source, source) for source in self.sources]


class AdapterFusion(Strategy):
    """y + sum_n s_n V z_n, s = softmax_n((Q y + b_q)^T (K z_n + b_k)): attention over adapters.

    Stage 1 is earlier runs: N >= 2 adapters, Bottleneck (as published) or LoRA, each trained alone.
    Stage 2 freezes them and trains Q, K and V at each of their insertion points. z_n is what
    adapter n would add there; y, the query, is what it would add to: the output of the branch for
    the positions `houlsby`, `pfeiffer` and `parallel`, the tokens after the block for `post`, and
    the output of the frozen linear layer for LoRA.

    It does not start as the frozen backbone: V is nearly the identity, so at first it adds about
    the mean of its sources. A saved fusion also holds its source adapters. `kora.load_adapter` uses
    these. A run that goes on from it uses them for folders that are missing; the others must be the
    same adapters in the same order, and their paths may differ.
    Source: Pfeiffer et al. 2021, arXiv:2005.00247.

    Args:
        sources: Configs of the source runs, which `kora fit` trains first if they are missing, with
            this run's seed and backbone; or adapter folders,
            `runs/<experiment>/<strategy>/seed<k>/version_<n>/adapter`. All are of one strategy,
            with the same sites or position and the same blocks, on this backbone. Ranks may
            differ.
        regulariser: Weight of sum ||I - V||_F^2 in the loss.

    Raises:
        ValueError: For fewer than two sources, the same one twice, a negative regulariser, or
            sources that do not fit each other or the backbone.
        FileNotFoundError: If a source is no adapter folder, and no loaded fusion holds it.
        RuntimeError: If a file of a source is damaged.
    """

    def __init__(self, sources: Sequence[str], *, regulariser: float = 0.01) -> None:
        super().__init__()
        name = type(self).__name__
        if isinstance(sources, str) or len(sources) < 2:
            raise ValueError(
                f"{name}: sources={sources!r}, expected a list of two adapter folders or more: "
                "over a single adapter the softmax is always 1. Train adapters on two tasks first, "
                "for example with --config configs/adapters/bottleneck.yaml."
            )
        if not 0 <= regulariser < float("inf"):
            raise ValueError(f"{name}: regulariser={regulariser}, expected 0 or more.")
        self.sources = sources
        self.regulariser = regulariser
        self.places = nn.ModuleDict()
        self.earlier_runs: FusedRuns = FusedRuns(sources, self.places)

    def make_layer(self, width: int) -> FusionLayer | LowRankFusionLayer:
        """The attention at one insertion point of D channels."""
        return FusionLayer(width)

    def attach(self, backbone: Backbone) -> None:
        """Read the sources, and put a fusion at each of their insertion points."""
        assert not self.places, "attached twice"
        for spot in self.earlier_runs.read(backbone):
            place = FusedPlace(self.make_layer(spot.width), spot.adapters)
            self.places[spot.key] = place
            spot.add(backbone, place.add)

    def fused(self) -> dict[str, FusedPlace]:
        """The insertion points by key, in forward order."""
        return {key: place for key, place in self.places.items() if isinstance(place, FusedPlace)}

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Q, K and V; the source adapters never train."""
        for key, place in self.fused().items():
            yield from place.layer.named_parameters(f"places.{key}.layer")

    def tensors(self) -> dict[str, Tensor]:
        """The source adapters as well, so that a file can replace their folders."""
        return dict(self.trainable()) | self.earlier_runs.tensors()

    def penalty(self) -> Tensor | None:
        """regulariser * sum over places of ||I - V||_F^2."""
        if not self.regulariser:
            return None
        terms = [place.layer.penalty() for place in self.fused().values()]
        return self.regulariser * torch.stack(terms).sum()

    def watch(self, on: bool) -> None:
        """Start or stop recording the attention shares; starting resets them."""
        for place in self.fused().values():
            place.watched = on
            if on:
                place.seen, place.share_N = 0, None


class LowRankFusion(AdapterFusion):
    """AdapterFusion with Q and K of R rows and V = diag(v) + U W of rank R, at a small budget.

    Not a published method: AdapterFusion trains 3 D^2 + 2 D numbers at each place, this one
    4 D R + 2 R + D, which can be matched to other adapters. V starts as the identity.

    Args:
        sources: See AdapterFusion.
        rank: R.
        regulariser: See AdapterFusion.

    Raises:
        ValueError: As AdapterFusion, or for a rank below 1 or above D.
    """

    size_argument = "rank"

    def __init__(self, sources: Sequence[str], rank: int = 8, *, regulariser: float = 0.01) -> None:
        super().__init__(sources, regulariser=regulariser)
        require_positive("LowRankFusion", rank=rank)
        self.rank = rank

    def make_layer(self, width: int) -> LowRankFusionLayer:
        """The attention at one insertion point of D channels."""
        return LowRankFusionLayer(width, self.rank)
