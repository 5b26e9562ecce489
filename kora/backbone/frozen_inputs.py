"""Features by name, so that what a strategy reads of a frozen pass can be cached as one table.

Shapes: B images, N patch tokens, P prefix tokens, D width.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from kora.backbone.vit import Features, Level

__all__ = ["Inputs", "features_from", "is_read", "named_features"]

#: All that a strategy reads of a pass, (B, ...) each.
Inputs = Mapping[str, Tensor]


def named_features(features: Features) -> dict[str, Tensor]:
    """Features by name: `pooled`, `patches`, `prefix`; `levels.0.patches` and so on for each level.

    And `layers`, if something reads them.
    """
    named = {"pooled": features.pooled, "patches": features.patches, "prefix": features.prefix}
    for number, level in enumerate(features.levels):
        named |= {f"levels.{number}.{part}": getattr(level, part) for part in Level._fields}
    return named if features.layers is None else named | {"layers": features.layers}


def features_from(inputs: Inputs) -> Features:
    """The inverse of `named_features`; missing tokens become tensors of length 0."""
    pooled_BD = inputs["pooled"]
    nothing_B0D = pooled_BD[:, None][:, :0]
    numbers = sum(name.endswith(".patches") for name in inputs if name.startswith("levels."))
    return Features(
        pooled=pooled_BD,
        patches=inputs.get("patches", nothing_B0D),
        prefix=inputs.get("prefix", nothing_B0D),
        levels=tuple(
            Level(inputs[f"levels.{number}.patches"], inputs[f"levels.{number}.prefix"])
            for number in range(numbers)
        ),
        layers=inputs.get("layers"),
    )


def is_read(name: str, reads: Collection[str]) -> bool:
    """Whether a head that reads these fields of `Features` needs the input of this name.

    The strategy may read the pooled vector, and inputs that are no features are its own: both are
    always needed.
    """
    field = name.partition(".")[0]
    return field == "pooled" or field not in Features._fields or field in reads
