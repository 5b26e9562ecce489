"""The source adapters of a fusion: read, checked against each other, built and frozen.

Shapes: N source adapters, D width of a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kora.adapter_folder import (
    ADAPTER_WEIGHTS,
    check_keys,
    expand,
    read_adapter_config,
    read_adapter_tensors,
)
from kora.adapters.base import LowRankDelta
from kora.adapters.bottleneck import Bottleneck
from kora.adapters.lora import LoRA
from kora.backbones import Backbone
from kora.places import Place, TokenFunction, add_at_place, add_at_site, find_places
from kora.sites import Site, find_sites

__all__ = ["FusionSource", "Spot", "read_sources"]

_KINDS: dict[str, type[Bottleneck] | type[LoRA]] = {
    "kora.adapters.Bottleneck": Bottleneck,
    "kora.adapters.LoRA": LoRA,
}
#: What all sources have to share for their adapters to sit at the same places.
_SHARED = {Bottleneck: ("position", "blocks"), LoRA: ("sites", "blocks")}


@dataclass(frozen=True)
class FusionSource:
    """One source adapter: where it lies, and what it is called in tables."""

    folder: Path
    name: str  # experiment/strategy, with the seed where that is not unique


@dataclass
class Spot:
    """A place that all sources share, with the adapter of each."""

    where: Place | Site
    width: int
    adapters: list[nn.Module] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Short unique name of the place: `b03_mlp`."""
        return self.where.key

    def add(self, backbone: Backbone, function: TokenFunction) -> None:
        """Hook a function in there."""
        if isinstance(self.where, Site):
            add_at_site(backbone, self.where, function)
        else:
            add_at_place(backbone, self.where, function)


def read_sources(
    sources: Sequence[str], backbone: Backbone
) -> tuple[list[FusionSource], list[Spot]]:
    """The sources, and their places in forward order with the loaded adapters.

    Raises:
        ValueError: If one is of a strategy that cannot be fused, of another backbone or format, or
            does not go with the first one.
        FileNotFoundError: If one is no adapter folder.
        RuntimeError: If a file is damaged.
    """
    folders = [expand(source) for source in sources]
    records = [read_adapter_config(folder) for folder in folders]
    _refuse_twins(folders)
    for folder, record in zip(folders, records, strict=True):
        _check(folder, record, folders[0], records[0], backbone)
    strategies = [_rebuild(folder, record) for folder, record in zip(folders, records, strict=True)]
    spots = _spots(strategies[0], backbone)
    for folder, strategy in zip(folders, strategies, strict=True):
        _load(folder, strategy, spots, backbone)
    names = _names(folders, records)
    return [FusionSource(f, n) for f, n in zip(folders, names, strict=True)], spots


def _check(
    folder: Path, record: dict[str, Any], first: Path, expected: dict[str, Any], backbone: Backbone
) -> None:
    kind = record["adapter"]["class_path"]
    if kind not in _KINDS:
        raise ValueError(
            f"Source adapter {folder} is of {kind}, which cannot be fused; expected one of "
            f"{', '.join(_KINDS)}."
        )
    if record["backbone"]["sha256"] != backbone.sha256:
        raise ValueError(
            f"Source adapter {folder} was trained on '{record['backbone']['name']}' with weights "
            f"{record['backbone']['sha256'][:12]}; this run has '{backbone.name}' with "
            f"{backbone.sha256[:12]}. All sources need the backbone of this run."
        )
    if kind != expected["adapter"]["class_path"]:
        raise ValueError(
            f"Source adapter {folder} is of {kind}, and {first} of "
            f"{expected['adapter']['class_path']}. Fuse adapters of one strategy."
        )
    mine, theirs = record["adapter"]["init_args"], expected["adapter"]["init_args"]
    for key in _SHARED[_KINDS[kind]]:
        if _in_any_order(mine.get(key)) != _in_any_order(theirs.get(key)):
            raise ValueError(
                f"Source adapter {folder} has {key}={mine.get(key)!r}, and {first} has "
                f"{theirs.get(key)!r}. Adapters can be fused only where both have one."
            )


def _in_any_order(value: Any) -> Any:
    return sorted(value) if isinstance(value, list) else value


def _refuse_twins(folders: Sequence[Path]) -> None:
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise ValueError(
                f"sources names {folder} twice; attention between equal adapters means nothing. "
                "Name adapters of different runs."
            )
        seen.add(folder.resolve())


def _rebuild(folder: Path, record: dict[str, Any]) -> Bottleneck | LoRA:
    adapter = record["adapter"]
    try:
        return _KINDS[adapter["class_path"]](**adapter["init_args"])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Source adapter {folder}, written by kora {record.get('kora_version')}, has arguments "
            f"that this version does not take: {error} Train it again."
        ) from error


def _spots(strategy: Bottleneck | LoRA, backbone: Backbone) -> list[Spot]:
    if isinstance(strategy, LoRA):
        sites = find_sites(backbone, strategy.sites, blocks=strategy.blocks)
        return [Spot(site, site.d_out) for site in sites]
    places = find_places(backbone, strategy.position, blocks=strategy.blocks)
    return [Spot(place, backbone.width) for place in places]


def _load(
    folder: Path, strategy: Bottleneck | LoRA, spots: Sequence[Spot], backbone: Backbone
) -> None:
    """Give every spot the adapter that this source has there."""
    made: dict[str, nn.Module] = {}
    for spot in spots:
        if isinstance(strategy, Bottleneck):
            made[f"adapters.{spot.key}"] = strategy.make(backbone.width)
        else:
            assert isinstance(spot.where, Site)
            delta = LowRankDelta(spot.where, strategy.rank, alpha=strategy.alpha)
            made[f"deltas.{spot.key}"] = delta
        spot.adapters.append(next(reversed(made.values())))
    mine = {
        f"adapter.{key}.{name}": parameter
        for key, module in made.items()
        for name, parameter in module.named_parameters()
    }
    stored = read_adapter_tensors(folder)
    stored = {k: v for k, v in stored.items() if not k.startswith("head.")}
    check_keys(mine, stored, f"Source adapter {folder / ADAPTER_WEIGHTS}")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(stored[name])


def _names(folders: Sequence[Path], records: Sequence[dict[str, Any]]) -> list[str]:
    """experiment/strategy; with the seed, then with a number, while two are equal."""
    names = []
    for folder, record in zip(folders, records, strict=True):
        kind = record["adapter"]["class_path"].rpartition(".")[2]
        names.append(f"{record.get('experiment', folder.name)}/{kind}")
    if len(set(names)) < len(names):
        names = [
            f"{name}/seed{record.get('seed', '?')}"
            for name, record in zip(names, records, strict=True)
        ]
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, start=1)]
    return names
