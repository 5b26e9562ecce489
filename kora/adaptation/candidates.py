"""The strategies that `kora adapt` tries, from the presets of kora, the cheapest first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kora.adapters import Strategy
from kora.runs.config_files import configs_folder
from kora.runs.trust import build
from kora.runs.yaml_files import read_yaml
from kora.training.batched_fit import Setting

__all__ = ["CACHED", "THROUGH", "Candidate"]


class Candidate(NamedTuple):
    """A strategy, by files below `configs/`.

    Args:
        name: Name of its runs.
        files: Presets; later ones win.
        why: Why it is tried, for people.
        settings: Learning rates in the order in which they are tried; empty: they are searched.
    """

    name: str
    files: tuple[str, ...]
    why: str
    settings: tuple[Setting, ...] = ()

    @property
    def model(self) -> dict[str, Any]:
        """Strategy and head of the presets, as in `model.init_args`."""
        found: dict[str, Any] = {}
        for name in self.files:
            found |= read_yaml(configs_folder() / f"{name}.yaml")["model"]["init_args"]
        return {key: found[key] for key in ("adapter", "head_layers", "head") if key in found}

    def strategy(self) -> Strategy:
        """The strategy object."""
        return build(Strategy, self.model["adapter"], origin=self.files[0])


#: On cached features: seconds a fit. The linear probe is the baseline of all others.
CACHED: Sequence[Candidate] = (
    Candidate("LinearProbe", ("adapters/linear_probe",), "the rival of all others"),
    Candidate("MultiLayerProbe", ("adapters/multi_layer_probe",), "reads six layers"),
    Candidate(
        "MultiLayerProbe-block", ("adapters/multi_layer_probe_dinov2",), "as DINOv2 evaluates"
    ),
    Candidate("KoRA-refined", ("adapters/kora_refined",), "nodes on six layers"),
)
#: Through the backbone: minutes a fit; the most worthwhile first (docs/results/photos.md).
THROUGH: Sequence[Candidate] = (
    Candidate("LoRA-layers", ("adapters/lora", "heads/multi_layer"), "LoRA, and six layers"),
    Candidate("KoRA-over-LoRA", ("adapters/kora_over_lora",), "LoRA, and nodes on three layers"),
    Candidate("BitFit", ("adapters/bitfit",), "biases alone"),
)
