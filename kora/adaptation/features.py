"""One pass of the frozen backbone over every picture, cached for all strategies and later calls.

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
from torch import Tensor

from datamodules.loading import decode_images
from datamodules.recipe import ImageRecipe
from kora import __version__
from kora.adaptation.candidates import Candidate
from kora.adapters import describe
from kora.backbone.frozen_inputs import is_read
from kora.backbone.layer_summaries import Together
from kora.backbone.vit import Backbone
from kora.console.say import say
from kora.feature_cache.rules import kept_fields
from kora.runs.durable import write_atomically
from kora.tasks import ClassificationTask

__all__ = ["FeatureStore", "Member", "SharedPass", "fill"]

_PASS = 32  # pictures a batch
_PART = 256  # pictures in a file: a stop loses the features of fewer


class Member(NamedTuple):
    """A strategy that reads the shared pass.

    Args:
        candidate: The strategy by its presets.
        task: Built, on the shared backbone.
        summaries: What its head reads from earlier layers; None if it reads none.
    """

    candidate: Candidate
    task: ClassificationTask
    summaries: Any


class SharedPass:
    """One pass for several strategies on one backbone that none of them changes.

    Args:
        backbone: The frozen backbone.
        candidates: Strategies; those that do not fit the backbone are left out, with a message.
        num_classes: Number of classes.
        seed: Of the weights with which the fits begin.
    """

    def __init__(
        self,
        backbone: Backbone,
        candidates: Sequence[Candidate],
        num_classes: int,
        *,
        seed: int = 0,
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
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    task.build()
            except ValueError as error:
                say(f"{task.label} is left out: {error}")
                continue
            self.members.append(Member(candidate, task, backbone.layer_summaries))
        backbone.layer_summaries = Together([m.summaries for m in self.members if m.summaries])
        self._widths: dict[str, tuple[int, ...]] | None = None

    @torch.no_grad()
    def read(self, images: Tensor) -> dict[str, Tensor]:
        """What all members read of images (B, 3, H, W), by the names of `_name`."""
        halves = [member.task.adapter.frozen_pass() for member in self.members]
        for half in halves:
            half.listen()
        features = self.backbone(images)
        layers = list(self.backbone.layer_summaries.last)
        found: dict[str, Tensor] = {}
        for member, half in zip(self.members, halves, strict=True):
            own = layers.pop(0) if member.summaries is not None else None
            reads = kept_fields(member.task)
            for name, tensor in half.taken(features._replace(layers=own)).items():
                if is_read(name, reads):
                    found[_name(member.candidate, name)] = tensor
        return found

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of `read`, for one picture."""
        if self._widths is None:
            height, width = self.backbone.size
            device = self.backbone.mean.device
            sample = self.read(torch.zeros(1, 3, height, width, dtype=torch.uint8, device=device))
            self._widths = {name: tuple(tensor.shape[1:]) for name, tensor in sample.items()}
        return self._widths

    @property
    def width(self) -> int:
        """W, the size of the features of a picture."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    def inputs_of(self, member: Member, rows_nW: Tensor) -> dict[str, Tensor]:
        """What a member reads, taken from rows of the store."""
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
        """Within, a member is the only one on the backbone."""
        together = self.backbone.layer_summaries
        self.backbone.layer_summaries = member.summaries
        try:
            yield
        finally:
            self.backbone.layer_summaries = together

    def identity(self, recipe: ImageRecipe) -> dict[str, Any]:
        """Everything that the features of a picture depend on, except the picture."""
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


class FeatureStore:
    """Features (W,) of pictures, by the SHA-256 of their content; files are only ever added.

    Args:
        folder: Folder in which each identity has its own folder of files.
        identity: What the features depend on, except the picture.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.folder = folder / digest[:24]
        self._rows: dict[str, Tensor] = {}
        for file in sorted(self.folder.glob("part_*.safetensors")):
            try:
                with safe_open(file, framework="pt") as part:
                    record, rows = part.metadata(), part.get_tensor("rows")
                keys = record["pictures"].split()
                if record["sha256"] != _sha256(keys, rows):
                    raise ValueError("its SHA-256 does not match")
            except (SafetensorError, OSError, KeyError, ValueError) as error:
                say(f"{file} cannot be read ({error}): its features are computed again.")
                continue
            self._rows |= dict(zip(keys, rows, strict=True))

    def missing(self, keys: Sequence[str]) -> list[str]:
        """The keys that are not there, each once, in order."""
        return [key for key in dict.fromkeys(keys) if key not in self._rows]

    def add(self, keys: Sequence[str], rows_nW: Tensor) -> None:
        """Store rows in a new file.

        Raises:
            OSError: it cannot be written; earlier files stay.
        """
        number = len(list(self.folder.glob("part_*.safetensors")))
        record = {"pictures": " ".join(keys), "sha256": _sha256(keys, rows_nW)}
        content = save({"rows": rows_nW.contiguous()}, record)
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
    """Compute the features that are missing; returns the number of pictures.

    Args:
        store: Stores the features.
        shared: Computes them.
        paths: Of the pictures, by the SHA-256 of their content.
        recipe: From file to pixels.
        after: Called after each batch with its number of pictures.
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


def _sha256(keys: Sequence[str], rows_nW: Tensor) -> str:
    found = hashlib.sha256(" ".join(keys).encode())
    found.update(rows_nW.contiguous().numpy().tobytes())
    return found.hexdigest()


def _name(candidate: Candidate, name: str) -> str:
    """The name of a tensor in the store; all candidates share the pooled vector."""
    return name if name == "pooled" else f"{candidate.name}/{name}"
