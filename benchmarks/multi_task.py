"""What several tasks cost by one shared pass, beside as many LoRA models.

Each answers the same images in turn, with 1, 2, 4 and 8 tasks of ten classes: `kora.MultiTask` of
KoRA-side runs, which share the backbone and its pass, and as many models of LoRA, which have a
backbone each. Memory is that of all weights.

    python benchmarks/multi_task.py [--model vit_small_patch16_224] [--batch 8] [--tasks 1 2 4 8]
        [--device cpu|cuda] [--repeats 5] [--json FILE] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `benchmarks`

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import kora
from benchmarks.measuring import (
    add_options,
    add_ratios,
    chosen_device,
    in_turn,
    machine,
    ratio_bars,
    shown,
    table,
    write,
)
from kora.adapters import KoRA, LoRA, PaperForm, Strategy
from kora.adapters.folder import save_adapter
from kora.backbone.vit import Backbone
from kora.tasks import ClassificationTask
from kora.tasks.adapter_record import task_record

CLASSES = 10
FORMS: dict[str, Callable[[], Strategy]] = {
    "KoRA-side": lambda: KoRA(PaperForm(8, inject=False), 8),
    "LoRA": lambda: LoRA(8),
}


def main(args: Sequence[str] | None = None) -> None:
    """Measure, print a table, and write JSON and a picture where asked."""
    parser = argparse.ArgumentParser(description="What several tasks cost.")
    parser.add_argument("--model", default="vit_small_patch16_224", help="a ViT of timm")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 4, 8])
    add_options(parser, repeats=5)
    own = parser.parse_args(args)
    device = chosen_device(parser, own)
    torch.manual_seed(0)
    try:
        backbone = Backbone(own.model, weights="random")
    except ValueError as error:
        parser.error(f"--model: {error}")
    pixels = (own.batch, 3, *backbone.size)
    images = torch.randint(0, 256, pixels, dtype=torch.uint8).to(device)
    most = max(own.tasks)
    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(folder) / "weights.safetensors")
        save_file({k: v.contiguous() for k, v in backbone.model.state_dict().items()}, weights)
        runs = {form: _runs(Path(folder) / form, form, own.model, weights, most) for form in FORMS}
        models: dict[str, list[nn.Module]] = {}
        for count in own.tasks:
            side, lora = runs["KoRA-side"][:count], runs["LoRA"][:count]
            shared = (
                kora.MultiTask(side, device=device)
                if count > 1
                else kora.load_adapter(side[0], device=device)
            )
            models[_name(count, "shared")] = [shared]
            models[_name(count, "LoRA")] = [kora.load_adapter(r, device=device) for r in lora]
    found = in_turn(
        {n: partial(_answer, m, images) for n, m in models.items()}, own.repeats, device
    )
    one = _name(min(own.tasks), "LoRA")
    add_ratios(found, one)
    for name, of_name in found.items():
        of_name["weights_mib"] = sum(_bytes(model) for model in models[name]) / 2**20
    kinds = [key for key in found[one] if " / " in key]
    rows = [
        [name, f"{of_name['weights_mib']:.1f}", *(shown(of_name[kind]) for kind in kinds)]
        for name, of_name in found.items()
    ]
    setting = f"{own.model}, {own.batch} images of {backbone.size[0]} x {backbone.size[1]}"
    print(
        f"\n{setting}, float32, medians of {own.repeats} rounds (lowest to highest)\n\n"
        f"{table(['tasks', 'MiB of weights', *kinds], rows)}\n\n{machine(device)}"
    )
    kind = kinds[-1]
    write(
        own,
        "multi_task",
        {"answers": found},
        partial(
            ratio_bars,
            ratios={name: of_name[kind] for name, of_name in found.items()},
            title=f"Several tasks: {setting}, float32",
            axis=f"{kind} (median; whiskers: lowest, highest)",
        ),
        device=device,
    )


def _runs(folder: Path, form: str, model: str, weights: str, count: int) -> list[Path]:
    """Adapter folders of tasks whose adapters differ."""
    made = []
    for number in range(count):
        torch.manual_seed(number)
        task = ClassificationTask(
            Backbone(model, weights=weights), FORMS[form](), num_classes=CLASSES
        )
        task.build()
        with torch.no_grad():
            for parameter in task.trainables().values():
                parameter += 0.02 * torch.randn(parameter.shape)
        extra = {**task_record(task), "class_names": [], "metrics": {}}
        made.append(
            save_adapter(
                folder / f"{number}",
                task.kept_tensors(),
                adapter=task.adapter,
                backbone=task.backbone,
                extra=extra,
            )
        )
    return made


def _name(count: int, how: str) -> str:
    return f"{count}, {'one pass (KoRA-side)' if how == 'shared' else 'LoRA models'}"


@torch.inference_mode()
def _answer(models: Sequence[nn.Module], images: Tensor) -> list[object]:
    return [model(images) for model in models]


def _bytes(model: nn.Module) -> int:
    tensors = {id(one): one for one in (*model.parameters(), *model.buffers())}
    return sum(one.numel() * one.element_size() for one in tensors.values())


if __name__ == "__main__":
    main()
