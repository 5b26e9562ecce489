"""Export in the format of Hugging Face's peft, for LoRA and DoRA over timm's plain model.

Written without peft: an adapter there is a JSON and a safetensors file. peft adapts whole layers,
so adapters of the rows of q, k and v in one fused layer become one adapter of that layer: their A
are stacked, their B are side by side, with zeros in all other rows.

Shapes: I input width, O output width, R rank.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from kora.adapters import LoRA, LowRankDelta
from kora.adapters.dora import Direction, DoRA
from kora.adapters.folder import ADAPTER_WEIGHTS
from kora.backbone.rewrites import frozen_layer, plain_state
from kora.backbone.sites import Site, find_sites
from kora.export.check import (
    Written,
    compared_pictures,
    creation,
    linear_head,
    probe_pictures,
)
from kora.export.prepare import USE, write_prepare
from kora.export.timm_weights import classifier_names, with_head
from kora.runs.adapter_config import ADAPTER_CONFIG
from kora.tasks.load import AdaptedModel

__all__ = ["write"]

_PREFIX = "base_model.model"


def write(model: AdaptedModel, folder: Path) -> Written:
    """Write the two files of peft; compare with peft's own model if peft is installed.

    Raises:
        ValueError: If the strategy is neither LoRA nor DoRA, or the head is no classifier.
    """
    adapter = model.adapter
    if type(adapter) not in (LoRA, DoRA):
        raise ValueError(
            f"--format peft takes LoRA and DoRA; what {adapter.label} computes has no counterpart "
            "there. Use --format onnx, --format timm if it can be folded into the weights, or "
            "kora.load_adapter."
        )
    assert isinstance(adapter, LoRA)
    head, names = linear_head(model, "peft"), classifier_names(model)
    layers = _by_layer(model, adapter)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for path, sites in layers.items():
        found = _layer_tensors(model, adapter, path, sites)
        ranks[path] = len(found["lora_A.weight"])
        tensors |= {f"{_PREFIX}.{path}.{key}": tensor for key, tensor in found.items()}
    for name in names:
        for key, tensor in head.linear.state_dict().items():
            tensors[f"{_PREFIX}.{name}.{key}"] = tensor
    save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()},
              folder / ADAPTER_WEIGHTS)  # fmt: skip
    config = _config(model, adapter, ranks, names)
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_prepare(model, folder, pixels=False)
    difference, largest = _compare(model, folder)
    return Written(
        load=_load_lines(model, head.linear.out_features),
        use=(*USE, "logits = model(prepare('photo.jpg'))"),
        details={"weights": ADAPTER_WEIGHTS, "num_classes": head.linear.out_features},
        difference=difference,
        largest=largest,
    )


def _by_layer(model: AdaptedModel, adapter: LoRA) -> dict[str, list[Site]]:
    """Sites by layer, without timm's classifier, which the head replaces."""
    sites = find_sites(
        model.backbone,
        adapter.sites,
        blocks=adapter.blocks,
        allow_dead_sites=adapter.allow_dead_sites,
    )
    found: dict[str, list[Site]] = {}
    for site in sites:
        if site.block is not None:
            found.setdefault(site.path, []).append(site)
    return found


def _layer_tensors(
    model: AdaptedModel, adapter: LoRA, path: str, sites: Sequence[Site]
) -> dict[str, Tensor]:
    """A (R, I), B (O, R) and, for DoRA, the length of each row (O,) of a whole layer."""
    weight_OI: Tensor = frozen_layer(model.backbone, path).weight
    rows = len(weight_OI)
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    length_O = torch.linalg.vector_norm(weight_OI.float(), dim=1)
    for site in sites:
        delta = adapter.deltas[site.key]
        assert isinstance(delta, LowRankDelta)
        first, end = site.rows or (0, rows)
        downs.append(delta.down_RI)
        ups.append(F.pad(delta.up_OR, (0, 0, first, rows - end)))
        if isinstance(delta, Direction):
            length_O[first:end] = delta.magnitude_O
    found = {"lora_A.weight": torch.cat(downs), "lora_B.weight": torch.cat(ups, dim=1)}
    if isinstance(adapter, DoRA):
        if not length_O.all():
            raise ValueError(
                f"Layer '{path}' of {model.backbone.name} has a row of zeros, and peft would "
                "divide by its length. Use --format timm."
            )
        found["lora_magnitude_vector"] = length_O
    return found


def _config(
    model: AdaptedModel, adapter: LoRA, ranks: dict[str, int], classifier: Sequence[str]
) -> dict[str, Any]:
    """peft's config. `lora_alpha` is alpha * rank, as peft divides by the rank.

    The rank of a layer is the sum over its sites.
    """
    common = min(ranks.values())
    other = {path: rank for path, rank in ranks.items() if rank != common}
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": model.backbone.name,
        "inference_mode": True,
        "r": common,
        "lora_alpha": adapter.alpha * common,
        "lora_dropout": adapter.dropout,
        "target_modules": list(ranks),
        "rank_pattern": other,
        "alpha_pattern": {path: adapter.alpha * rank for path, rank in other.items()},
        "modules_to_save": list(classifier),
        "use_dora": isinstance(adapter, DoRA),
        "use_rslora": False,
        "fan_in_fan_out": False,
        "bias": "none",
        "init_lora_weights": True,
    }


def _load_lines(model: AdaptedModel, num_classes: int) -> tuple[str, ...]:
    imports, create = creation(model.backbone, num_classes)
    weights = model.backbone.weights
    own = ""
    if weights != "pretrained":
        # Of another number of classes than any model's, so that timm leaves the classifier out.
        own = f", pretrained_cfg_overlay={{'file': {weights!r}, 'num_classes': -1}}"
    return (
        *imports,
        "from peft import PeftModel",
        f"base = {create.removesuffix(')')}, pretrained=True{own})",
        "model = PeftModel.from_pretrained(base, 'FOLDER').eval()",
    )


def _compare(model: AdaptedModel, folder: Path) -> tuple[float | None, float]:
    if find_spec("peft") is None:
        with torch.inference_mode():
            return None, max(
                model(p[None]).abs().max().item() for p in probe_pictures(model.backbone)
            )
    from peft import PeftModel

    head = linear_head(model, "peft")
    base = model.backbone.plain_model(head.linear.out_features)
    state = with_head(model, plain_state(model.backbone), head)
    for name in classifier_names(model):  # so that the head can only come from the file
        state |= {k: torch.zeros_like(v) for k, v in state.items() if k.rpartition(".")[0] == name}
    base.load_state_dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(base, str(folder)).eval()
    with torch.inference_mode():
        return compared_pictures(model, folder, adapted)
