"""Source adapters for fusion: trained nowhere, but away from their start."""

from __future__ import annotations

import csv
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from kora.adapters import Bottleneck, LoRA, Strategy
from kora.adapters.folder import save_adapter
from kora.backbone.vit import Backbone
from tests.support.factory import built, kick
from tests.support.families import tiny

__all__ = ["TABLE", "bottleneck_sources", "lora_sources", "table", "tiny_sources", "write_source"]


def write_source(
    folder: Path,
    adapter: Strategy,
    *,
    seed: int = 0,
    backbone: Backbone | None = None,
    **extra: Any,
) -> str:
    """An adapter folder as a run would write it; its random weights depend on the seed."""
    task = kick(built(adapter, backbone=backbone, seed=seed), seed=seed)
    record = {"experiment": "source", "seed": seed, **extra}
    save_adapter(
        folder, task.kept_tensors(), adapter=task.adapter, backbone=task.backbone, extra=record
    )
    return str(folder)


@cache
def bottleneck_sources(position: str = "houlsby") -> tuple[str, ...]:
    """Two Bottleneck adapters of other ranks on `nano()`, in blocks 0 and 2; kept during a run."""
    return tuple(
        write_source(
            _folder(f"bottleneck_{position}_{rank}"),
            Bottleneck(rank, position, scale="channel", drop_path=0.5, blocks=[0, 2]),
            seed=rank,
            experiment=style,
        )
        for rank, style in ((3, "paint"), (4, "studio"))
    )


@cache
def lora_sources() -> tuple[str, ...]:
    """Three LoRA adapters on `nano()`, on row slices and a whole layer of all blocks."""
    return tuple(
        write_source(_folder(f"lora_{seed}"), LoRA(2, 0.5, sites=["q", "v", "proj"]), seed=seed)
        for seed in (3, 4, 5)
    )


@cache
def tiny_sources(family: str, kind: str) -> tuple[str, ...]:
    """Two `bottleneck` or `lora` adapters of other ranks on a tiny model of a family."""
    strategies = {
        "bottleneck": lambda rank: Bottleneck(rank, scale="channel", drop_path=0.5),
        "lora": lambda rank: LoRA(rank, 0.5, sites=["fc2"]),  # called in every family
    }
    return tuple(
        write_source(
            _folder(f"{family}_{kind}_{rank}"),
            strategies[kind](rank),
            seed=rank,
            backbone=tiny(family),
        )
        for rank in (2, 3)
    )


@cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="kora_sources_")


def _folder(name: str) -> Path:
    return Path(_root().name) / name


TABLE = "fusion_attention.csv"


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / TABLE).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
