"""A strategy on a timm model of your own, for a training loop of your own.

Shapes: B images, H and W pixels, K classes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kora.adapters import Strategy
from kora.adapters import folder as adapter_files
from kora.backbone.vit import Backbone
from kora.backbone.weights import without_numbers
from kora.runs.durable import expand

__all__ = ["Attached", "attach"]


def attach(model: nn.Module, adapter: Strategy) -> Attached:
    """Freeze a timm vision transformer and hook a strategy in; strategy and classifier train.

    As with peft's `get_peft_model`, the model is changed in place. The result has the same input
    and output as the model: normalised pixels (B, 3, H, W) and logits (B, K). Dropout and drop-path
    of timm's blocks do not run while these are frozen, and that of timm's head never does.

        model = timm.create_model("vit_small_patch14_dinov2", pretrained=True, num_classes=10)
        model = kora.attach(model, LoRA(rank=8))
        optimizer = torch.optim.AdamW(model.trainables().values(), lr=1e-3)
        ...                       # your loop
        model.save("adapter")     # kora.attach(the same model, LoRA(rank=8)).load("adapter")
        plain = model.merged()    # timm's own model again

    Raises:
        ValueError: The model is not a vision transformer as timm builds it by its name, its
            classifier does not read what the strategy adds, or the strategy is in use.
    """
    return Attached(model, adapter)


@contextmanager
def _as_it_was_if_refused(model: Any, head: nn.Module | None) -> Iterator[None]:
    """Give a model its classifier back if an error comes, and let train what did."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    classes = getattr(model, "num_classes", None)
    try:
        yield
    except BaseException:
        if head is not None and model.get_classifier() is not head:
            above, _, name = model.pretrained_cfg["classifier"].rpartition(".")
            setattr(model.get_submodule(above), name, head)
            model.num_classes = classes
        for parameter in trained:
            parameter.requires_grad_(True)
        raise


def _require_pooled(adapter: Strategy, backbone: Backbone) -> None:
    """Try a strategy on a twin of the backbone, before the model itself is changed.

    Raises:
        ValueError: It does not fit, or gives the head more than timm's classifier reads.
    """
    with without_numbers():
        twin = copy.deepcopy(adapter)
        twin.attach(Backbone.around(backbone.meta_twin()))
    given = twin.extra_channels, twin.head_layers, twin.query_channels
    if any(one is not None for one in given):
        raise ValueError(
            f"kora.attach: {adapter.label} gives the head more than the pooled vector, "
            "which timm's classifier does not read. Use kora.tasks.ClassificationTask."
        )


class Attached(nn.Module):
    """A timm model with a strategy hooked in; `attach` returns it."""

    def __init__(self, model: nn.Module, adapter: Strategy) -> None:
        super().__init__()
        whole: Any = model
        if not isinstance(adapter, Strategy):
            raise ValueError(
                f"kora.attach: expected a strategy, LoRA(rank=8) say, not {adapter!r}."
            )
        head = whole.get_classifier() if hasattr(whole, "get_classifier") else None
        if head is not None and not isinstance(head, nn.Linear | nn.Identity):
            raise ValueError(
                f"kora.attach: the classifier is a {type(head).__name__}, expected one linear "
                "layer, or none (num_classes=0)."
            )
        if adapter.tensors():
            raise ValueError(f"kora.attach: this {adapter.label} is in use. Make another one.")
        training = model.training  # Backbone.around puts it into eval mode
        with _as_it_was_if_refused(whole, head):
            try:
                self.backbone = Backbone.around(model)
            except ValueError as error:
                raise ValueError(f"kora.attach: {error}") from error
            self.adapter = adapter
            self.head: nn.Module = nn.Identity() if head is None else head
            _require_pooled(adapter, self.backbone)
            adapter.attach(self.backbone)
        frozen = next(self.backbone.parameters())
        adapter.to(device=frozen.device, dtype=frozen.dtype)
        self.backbone.sha256  # noqa: B018  (hash the frozen weights before any of them may train)
        self.requires_grad_(False)
        for parameter in self.trainables().values():
            parameter.requires_grad_(True)
        self.train(training)

    def trainables(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name: `adapter.*` and `head.*`."""
        mine = {f"adapter.{name}": parameter for name, parameter in self.adapter.trainable()}
        return mine | {f"head.{name}": p for name, p in self.head.named_parameters()}

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels (B, 3, H, W) to logits (B, K), or to pooled vectors without a head."""
        output: Tensor = self.head(self.adapter(self.backbone, pixels).pooled)
        return output

    def save(self, folder: str | Path) -> Path:
        """Write adapter and head as an adapter folder, without the frozen weights."""
        return adapter_files.save_adapter(
            expand(folder), self._tensors(), adapter=self.adapter, backbone=self.backbone,
            extra={"weights": {"source": self.backbone.weights, "keep_classifier": False}},
        )  # fmt: skip

    def load(self, folder: str | Path) -> Attached:
        """Take adapter and head from an adapter folder; returns itself.

        Raises:
            FileNotFoundError: It is no adapter folder.
            ValueError: It has another strategy, other frozen weights, or another head.
            RuntimeError: A file is damaged.
        """
        path = expand(folder)
        stored = adapter_files.read_adapter_tensors(path)
        head = {k: v for k, v in self._tensors().items() if k.startswith("head.")}
        theirs = {k: v for k, v in stored.items() if k.startswith("head.")}
        adapter_files.check_keys(head, theirs, f"The head in {path}")
        adapter_files.load_adapter(path, self.adapter, self.backbone)
        with torch.no_grad():
            for name, tensor in head.items():
                tensor.copy_(theirs[name])
        return self

    def merged(self) -> Any:
        """timm's own model with the adapter folded into its weights, in eval mode.

        Raises:
            ValueError: The strategy cannot be folded into weights.
        """
        classes = getattr(self.head, "out_features", 0)
        frozen = next(self.backbone.parameters())
        plain: Any = self.backbone.plain_model(classes)
        plain.to(device=frozen.device, dtype=frozen.dtype)
        state = self.adapter.merged(self.backbone)
        of_head = {f"head.{key}": tensor for key, tensor in self.head.state_dict().items()}
        plain.load_state_dict({**state, **of_head})
        return plain.eval()

    def _tensors(self) -> dict[str, Tensor]:
        """Tensors of adapter and head, named as in an adapter folder."""
        mine = {f"adapter.{name}": tensor for name, tensor in self.adapter.tensors().items()}
        head = self.head.state_dict(keep_vars=True)
        return mine | {f"head.linear.{name}": tensor for name, tensor in head.items()}
