"""What `kora adapt` tries: strategies by the presets that come with kora, the cheapest first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
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

    def model(self, num_classes: int) -> dict[str, Any]:
        """What the presets say of `model.init_args`, for so many classes."""
        found: dict[str, Any] = {}
        for name in self.files:
            found |= read_yaml(configs_folder() / f"{name}.yaml")["model"]["init_args"]
        adapter = copy.deepcopy(found["adapter"])
        if "d_comp" in adapter.get("init_args", {}):  # a readout of logits wants as many
            adapter["init_args"]["d_comp"] = max(adapter["init_args"]["d_comp"], num_classes)
        kept = {"adapter": adapter}
        return kept | {key: found[key] for key in ("head_layers",) if key in found}

    def strategy(self, num_classes: int) -> Strategy:
        """The strategy itself."""
        return build(Strategy, self.model(num_classes)["adapter"], origin=self._origin)

    @property
    def _origin(self) -> str:
        return str(Path(*self.files[:1]))


#: On kept features, seconds a fit. The linear probe is the rival of all others.
CACHED: Sequence[Candidate] = (
    Candidate("LinearProbe", ("adapters/linear_probe",), "the rival of all others"),
    Candidate("MultiLayerProbe", ("adapters/multi_layer_probe",), "reads six layers"),
    Candidate(
        "MultiLayerProbe-block", ("adapters/multi_layer_probe_dinov2",), "as DINOv2 evaluates"
    ),
    Candidate("KoRA-refined", ("adapters/kora_refined",), "composes six layers"),
)
#: Through the backbone, minutes a fit; in the order in which they pay (docs/RESULTS.md).
THROUGH: Sequence[Candidate] = (
    Candidate("LoRA-layers", ("adapters/lora", "heads/multi_layer"), "LoRA, and six layers"),
    Candidate("KoRA-over-LoRA", ("adapters/kora_over_lora",), "LoRA, and three layers composed"),
)
