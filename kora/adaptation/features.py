"""One pass of the frozen backbone over every picture, kept for all strategies and later calls.

Shapes: B pictures a batch, n pictures, W numbers a picture
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from datamodules.loading import decode_images
from datamodules.recipe import ImageRecipe
from kora import __version__
from kora.adaptation.candidates import Candidate
from kora.adapters import describe
from kora.backbone.frozen_inputs import is_read
from kora.backbone.vit import Backbone
from kora.console.say import say
from kora.feature_cache.rules import head_reads
from kora.runs.durable import write_atomically
from kora.tasks import ClassificationTask

__all__ = ["FeatureStore", "Member", "SharedPass", "fill"]

_PASS = 32  # pictures that pass at once
_PART = 256  # pictures in a file, which is what a stop can lose


class Member(NamedTuple):
    """A strategy that reads the shared pass.

    Args:
        candidate: What it is.
        task: Built, on the shared backbone.
        summaries: What its head reads of earlier layers; None where that is nothing.
    """

    candidate: Candidate
    task: ClassificationTask
    summaries: Any


class SharedPass:
    """Several strategies on one backbone that none of them changes: one pass serves all.

    Args:
        backbone: The frozen backbone.
        candidates: Those that do not fit the backbone are left out, with a line.
        num_classes: K.
    """

    def __init__(
        self, backbone: Backbone, candidates: Sequence[Candidate], num_classes: int
    ) -> None:
        self.backbone = backbone
        self.members: list[Member] = []
        for candidate in candidates:
            backbone.layer_summaries = None
            task = ClassificationTask(
                backbone, candidate.strategy(), num_classes=num_classes,
                head_init="zero",
            )  # fmt: skip
            try:
                task.build()
            except ValueError as error:
                say(f"{task.label} is left out: {error}")
                continue
            self.members.append(Member(candidate, task, backbone.layer_summaries))
        backbone.layer_summaries = _Together([m.summaries for m in self.members if m.summaries])
        self._widths: dict[str, tuple[int, ...]] | None = None

    @torch.no_grad()
    def read(self, images: Tensor) -> dict[str, Tensor]:
        """What all of them read of images (B, 3, H, W), by the names of `names_of`."""
        halves = [member.task.adapter.frozen_pass() for member in self.members]
        for half in halves:
            half.listen()
        features = self.backbone(images)
        layers = list(self.backbone.layer_summaries.last)
        found: dict[str, Tensor] = {}
        for member, half in zip(self.members, halves, strict=True):
            own = layers.pop(0) if member.summaries is not None else None
            reads = head_reads(member.task)
            for name, tensor in half.taken(features._replace(layers=own)).items():
                if is_read(name, reads):
                    found[_name(member.candidate, name)] = tensor
        return found

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each tensor of `read`, for one picture."""
        if self._widths is None:
            height, width = self.backbone.size
            device = self.backbone.mean.device
            sample = self.read(torch.zeros(1, 3, height, width, dtype=torch.uint8, device=device))
            self._widths = {name: tuple(tensor.shape[1:]) for name, tensor in sample.items()}
        return self._widths

    @property
    def width(self) -> int:
        """W, the numbers of a picture."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def inputs_of(self, member: Member, rows_nW: Tensor) -> dict[str, Tensor]:
        """What a member reads, of rows of the store."""
        sizes = [torch.Size(shape).numel() for shape in self.shapes.values()]
        parts = dict(zip(self.shapes, rows_nW.split_with_sizes(sizes, dim=1), strict=True))
        mine = f"{member.candidate.name}/"
        return {
            name.removeprefix(mine): part.reshape(len(rows_nW), *self.shapes[name])
            for name, part in parts.items()
            if name == "pooled" or name.startswith(mine)
        }

    @contextmanager
    def alone(self, member: Member) -> Iterator[None]:
        """As if a member were the only one on the backbone."""
        together = self.backbone.layer_summaries
        self.backbone.layer_summaries = member.summaries
        try:
            yield
        finally:
            self.backbone.layer_summaries = together

    def identity(self, recipe: ImageRecipe) -> dict[str, Any]:
        """All that the numbers of a picture depend on, but for the picture."""
        return {
            "backbone": {k: v for k, v in self.backbone.facts.items() if k != "weights"},
            "interpolation": self.backbone.interpolation,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "reads": [
                [m.task.adapter.frozen_pass().key(), m.summaries and describe(m.summaries)]
                for m in self.members
            ],
            "recipe": [recipe.fit, recipe.size, recipe.transparency],
            "float32": torch.get_float32_matmul_precision(),
            "timm": metadata.version("timm"),
            "kora": __version__,
        }


class _Together(nn.Module):
    """Stands in for the summaries of one head: every pass brings those of all heads."""

    def __init__(self, summaries: Sequence[Any]) -> None:
        super().__init__()
        self.summaries: Any = nn.ModuleList(summaries)
        self.last: list[Tensor] = []

    def begin(self) -> None:
        for one in self.summaries:
            one.begin()

    def taken(self) -> None:
        self.last = [one.taken() for one in self.summaries]


class FeatureStore:
    """Rows (W,) of pictures, by the SHA-256 of their content; files are only ever added.

    Args:
        folder: Of the files; below it each identity has a folder of its own.
        identity: What the numbers depend on beside the picture.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder = folder / digest[:24]
        self._rows: dict[str, Tensor] = {}
        for file in sorted(self.folder.glob("part_*.safetensors")):
            try:
                with safe_open(file, framework="pt") as part:
                    keys = part.metadata()["pictures"].split()
                    rows = part.get_tensor("rows")
            except (SafetensorError, OSError, KeyError) as error:
                say(f"{file} cannot be read ({error}): its pictures are passed through again.")
                continue
            self._rows |= dict(zip(keys, rows, strict=False))

    def missing(self, keys: Sequence[str]) -> list[str]:
        """Those that are not there, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._rows]

    def add(self, keys: Sequence[str], rows_nW: Tensor) -> None:
        """Keep rows, in a file of their own.

        Raises:
            OSError: it cannot be written; what was kept before stays.
        """
        number = len(list(self.folder.glob("part_*.safetensors")))
        content = save({"rows": rows_nW.contiguous()}, {"pictures": " ".join(keys)})
        file = self.folder / f"part_{number:04d}.safetensors"
        write_atomically(file, lambda target: target.write_bytes(content))
        self._rows |= dict(zip(keys, rows_nW, strict=True))

    def rows(self, keys: Sequence[str]) -> Tensor:
        """(n, W), in the order of the keys, all of which must be there."""
        return torch.stack([self._rows[key] for key in keys])


def fill(
    store: FeatureStore,
    shared: SharedPass,
    paths: Mapping[str, Path],
    recipe: ImageRecipe,
    *,
    after: Callable[[int], object] = lambda count: None,
) -> int:
    """Pass the pictures that are missing through the backbone; how many these were.

    Args:
        store: Takes the rows.
        shared: Reads them.
        paths: Of the pictures, by the SHA-256 of their content.
        recipe: From file to pixels.
        after: Is given the number of pictures that have just passed.
    """
    missing = store.missing(list(paths))
    device = shared.backbone.mean.device
    for start in range(0, len(missing), _PART):
        keys = missing[start : start + _PART]
        parts = []
        for at in range(0, len(keys), _PASS):
            some = keys[at : at + _PASS]
            images = decode_images([paths[key] for key in some], recipe, what="pictures")
            read = shared.read(images.to(device))
            parts.append(torch.cat([one.flatten(1).float().cpu() for one in read.values()], dim=1))
            after(len(some))
        store.add(keys, torch.cat(parts))
    return len(missing)


def _name(candidate: Candidate, name: str) -> str:
    """The pooled vector is that of all."""
    return name if name == "pooled" else f"{candidate.name}/{name}"
