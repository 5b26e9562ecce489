"""What `kora adapt` tries: strategies by the presets that come with kora, the cheapest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kora.adapters import Strategy
from kora.runs.config_files import configs_folder
from kora.runs.trust import build
from kora.runs.yaml_files import read_yaml

__all__ = ["CACHED", "THROUGH", "Candidate"]


class Candidate(NamedTuple):
    """A strategy, by files below `configs/`.

    Args:
        name: That of its runs.
        files: Presets; later ones win.
        why: It is tried, for people.
    """

    name: str
    files: tuple[str, ...]
    why: str

    @property
    def model(self) -> dict[str, Any]:
        """What the presets say of strategy and head, as in `model.init_args`."""
        found: dict[str, Any] = {}
        for name in self.files:
            found |= read_yaml(configs_folder() / f"{name}.yaml")["model"]["init_args"]
        return {key: found[key] for key in ("adapter", "head_layers") if key in found}

    def strategy(self) -> Strategy:
        """The strategy itself."""
        return build(Strategy, self.model["adapter"], origin=self.files[0])


#: On kept features, seconds a fit. The linear probe is the rival of all others.
CACHED: Sequence[Candidate] = (
    Candidate("LinearProbe", ("adapters/linear_probe",), "the rival of all others"),
    Candidate("MultiLayerProbe", ("adapters/multi_layer_probe",), "reads six layers"),
    Candidate(
        "MultiLayerProbe-block", ("adapters/multi_layer_probe_dinov2",), "as DINOv2 evaluates"
    ),
    Candidate("KoRA-refined", ("adapters/kora_refined",), "composes six layers"),
)
#: Through the backbone, minutes a fit; in the order in which they pay (docs/results/index.md).
THROUGH: Sequence[Candidate] = (
    Candidate("LoRA-layers", ("adapters/lora", "heads/multi_layer"), "LoRA, and six layers"),
    Candidate("KoRA-over-LoRA", ("adapters/kora_over_lora",), "LoRA, and three layers composed"),
)
