"""The source adapters of a fusion: read, checked against each other, built and frozen.

Shapes: N source adapters, D width of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kora.adapters.bottleneck import Bottleneck
from kora.adapters.folder import (
    ADAPTER_WEIGHTS,
    check_keys,
    read_adapter_tensors,
)
from kora.adapters.lora import LoRA
from kora.adapters.low_rank import LowRankDelta
from kora.backbone.insertion_points import (
    Place,
    TokenFunction,
    add_at_place,
    add_at_site,
    find_places,
)
from kora.backbone.sites import Site, find_sites
from kora.backbone.vit import Backbone
from kora.runs.adapter_config import ADAPTER_CONFIG, read_adapter_config
from kora.runs.durable import expand

__all__ = ["FusionSource", "Spot", "is_there", "read_sources", "recalled"]

_KINDS: dict[str, type[Bottleneck] | type[LoRA]] = {
    "kora.adapters.Bottleneck": Bottleneck,
    "kora.adapters.LoRA": LoRA,
}
#: Arguments that all sources must share, so that their adapters have the same insertion points.
_SHARED = {Bottleneck: ("position", "blocks"), LoRA: ("sites", "blocks")}


#: Keys of a source's record that the file of a fusion keeps.
_KEPT = ("kora_version", "adapter", "backbone", "experiment", "seed")


@dataclass(frozen=True)
class FusionSource:
    """One source adapter: its folder, its JSON record, and its name in tables."""

    folder: Path
    record: Mapping[str, Any]
    name: str  # experiment/strategy, with the seed if that is not unique

    def kept(self) -> dict[str, Any]:
        """The part of its record that the file of a fusion keeps, in plain types."""
        return {key: self.record[key] for key in _KEPT if key in self.record}


@dataclass(frozen=True)
class _Stored:
    """Record and tensors of a source; tensors by place and name: `b03_mlp.down.weight`."""

    record: dict[str, Any]
    tensors: dict[str, Tensor]
    file: str  # for messages


@dataclass
class Spot:
    """An insertion point that all sources share, with the adapter of each."""

    where: Place | Site
    width: int
    adapters: list[nn.Module] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Short unique name: `b03_mlp`."""
        return self.where.key

    def add(self, backbone: Backbone, function: TokenFunction) -> None:
        """Hook a function in there."""
        if isinstance(self.where, Site):
            add_at_site(backbone, self.where, function)
        else:
            add_at_place(backbone, self.where, function)


def is_there(source: str) -> bool:
    """Whether it is an adapter folder."""
    return (expand(source) / ADAPTER_CONFIG).is_file()


def recalled(
    records: Sequence[dict[str, Any]], tensors: Mapping[str, Tensor], origin: str
) -> list[_Stored]:
    """The sources in the file of a fusion, whose names the tensors have."""
    found = [_Stored(record, {}, origin) for record in records]
    for name, tensor in tensors.items():
        place, of_source, rest = name.removeprefix("places.").partition(".adapters.")
        number, _, rest = rest.partition(".")
        if of_source and number.isdecimal() and int(number) < len(found):
            found[int(number)].tensors[f"{place}.{rest}"] = tensor
    return found


def read_sources(
    sources: Sequence[str],
    backbone: Backbone,
    kept: Sequence[_Stored] = (),
    *,
    alone: bool = False,
) -> tuple[list[FusionSource], list[Spot]]:
    """The sources, and their insertion points in forward order with the loaded adapters.

    Args:
        sources: Adapter folders.
        backbone: On the meta device its weights are not compared, and none are loaded.
        kept: What `recalled` returned, for folders that no longer exist.
        alone: Use it for all folders.

    Raises:
        ValueError: If one is of a strategy that cannot be fused, of another backbone or format, or
            does not fit the first one.
        FileNotFoundError: If one is no adapter folder.
        RuntimeError: If a file is damaged.
    """
    _refuse_missing(sources, kept)
    folders = [expand(source) for source in sources]
    stored = [
        kept[number] if alone or not is_there(source) else _read(folder)
        for number, (source, folder) in enumerate(zip(sources, folders, strict=True))
    ]
    records = [one.record for one in stored]
    _refuse_twins(folders)
    for folder, record in zip(folders, records, strict=True):
        _check(folder, record, folders[0], records[0], backbone)
    strategies = [_rebuild(folder, record) for folder, record in zip(folders, records, strict=True)]
    spots = _spots(strategies[0], backbone)
    for one, strategy in zip(stored, strategies, strict=True):
        _load(one, strategy, spots, backbone)
    names = _names(folders, records)
    return [FusionSource(*one) for one in zip(folders, records, names, strict=True)], spots


def _refuse_missing(sources: Sequence[str], kept: Sequence[_Stored]) -> None:
    missing = [] if len(kept) == len(sources) else [s for s in sources if not is_there(s)]
    if missing:
        what = "is no adapter folder" if len(missing) == 1 else "are no adapter folders"
        raise FileNotFoundError(
            f"sources: {', '.join(missing)} {what} (no {ADAPTER_CONFIG} there). Train the source "
            "runs first, or give the paths of their folders, or the configs of those runs, which "
            "kora fit trains if they are missing. To load an earlier fusion, which holds "
            "its sources, give its checkpoint (--ckpt_path) or its folder (model.adapter_from)."
        )


def _read(folder: Path) -> _Stored:
    record = read_adapter_config(folder)
    tensors = {
        name.removeprefix("adapter.").partition(".")[2]: tensor  # after `adapters.`, `deltas.`
        for name, tensor in read_adapter_tensors(folder).items()
        if name.startswith("adapter.")
    }
    return _Stored(record, tensors, str(folder / ADAPTER_WEIGHTS))


def _check(
    folder: Path, record: dict[str, Any], first: Path, expected: dict[str, Any], backbone: Backbone
) -> None:
    kind = record["adapter"]["class_path"]
    if kind not in _KINDS:
        raise ValueError(
            f"Source adapter {folder} is of {kind}, which cannot be fused; expected one of "
            f"{', '.join(_KINDS)}."
        )
    if not _is_of(record["backbone"], backbone):
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
                f"{theirs.get(key)!r}. Only adapters with the same {key} can be fused."
            )


def _is_of(record: Mapping[str, Any], backbone: Backbone) -> bool:
    if next(backbone.parameters()).is_meta:  # only counted: there are no weights to compare
        return bool(record["name"].partition(".")[0] == backbone.name.partition(".")[0])
    return bool(record["sha256"] == backbone.sha256)


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
    stored: _Stored, strategy: Bottleneck | LoRA, spots: Sequence[Spot], backbone: Backbone
) -> None:
    """Give every insertion point the adapter of this source."""
    mine: dict[str, nn.Parameter] = {}
    for spot in spots:
        adapter: nn.Module
        if isinstance(strategy, Bottleneck):
            adapter = strategy.make(backbone.width)
        else:
            assert isinstance(spot.where, Site)
            adapter = LowRankDelta(spot.where, strategy.rank, alpha=strategy.alpha)
        spot.adapters.append(adapter)
        mine |= {f"{spot.key}.{name}": p for name, p in adapter.named_parameters()}
    if next(backbone.parameters()).is_meta:
        return
    check_keys(mine, stored.tensors, f"Source adapter {stored.file}")
    with torch.no_grad():
        for name, tensor in mine.items():
            tensor.copy_(stored.tensors[name])


def _names(folders: Sequence[Path], records: Sequence[dict[str, Any]]) -> list[str]:
    """experiment/strategy; if two are equal, with the seed, and if still equal, a number."""
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
