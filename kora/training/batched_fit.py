"""Many fits of one task at once, on cached features.

For strategies that never change the backbone. The fits differ in learning rates and weight decay,
and may differ in what they start with: first tensors, images and their order. Their tensors are
stacked, and one pass serves all.

Shapes: S settings, n images, B images a batch, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import (
    _add_batch_dim,
    get_unwrapped,
    is_batchedtensor,
    maybe_get_bdim,
    maybe_get_level,
)
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from datamodules.sampling import EpochShuffle
from kora.backbone.frozen_inputs import Inputs
from kora.tasks import ClassificationTask
from kora.tasks.callbacks import flushed
from kora.tasks.optim import parameter_groups, schedule_factor

__all__ = ["Setting", "Start", "Trained", "fit_together", "fits_at_once", "rows_of"]

T = TypeVar("T")


class Start(NamedTuple):
    """What a fit starts with.

    Args:
        tensors: Its trainables, by their names in the task.
        inputs: Cached features of its n training images.
        labels: (n,), of these images.
        seed: Seed of the order of the images.
    """

    tensors: Mapping[str, Tensor]
    inputs: Inputs
    labels: Tensor
    seed: int


class Setting(NamedTuple):
    """The settings of one fit: AdamW's learning rates and weight decay.

    Args:
        head_lr: Learning rate of the head.
        lr: Learning rate of the adapter, if it has anything to train.
        weight_decay: Of both.
        dropouts: A probability for each of the `stand_ins` of `fit_together`.
        start: None: the tensors of the task, and the images that are given for all fits.
    """

    head_lr: float
    lr: float
    weight_decay: float = 0.01
    dropouts: tuple[float, ...] = ()
    start: Start | None = None


#: Parameters of all fits that train at once. With more than the first number, fits leave the caches
#: of a CPU, and each takes longer; the second one is for the memory of a GPU.
_MOST_ON_CPU, _MOST = 1 << 22, 1 << 26


def fits_at_once(task: ClassificationTask) -> int:
    """How many fits of a task should train together."""
    size = sum(parameter.numel() for parameter in task.trainables().values())
    return max(1, (_MOST_ON_CPU if task.device.type == "cpu" else _MOST) // size)


class Trained(NamedTuple):
    """The tensors of all fits, (S, ...) each, by their names in the task."""

    tensors: Mapping[str, Tensor]

    def are_finite(self) -> Tensor:
        """(S,), whether all numbers of a fit are finite."""
        each = [tensor.flatten(1).isfinite().all(dim=1) for tensor in self.tensors.values()]
        return torch.stack(each).all(dim=0)

    @torch.no_grad()
    def logits(
        self, task: ClassificationTask, inputs: Inputs | Sequence[Inputs], *, at_once: int = 512
    ) -> Tensor:
        """Logits of n images by each fit, (S, n, K); of the same images, or of n for each fit."""
        each = [inputs] if isinstance(inputs, Mapping) else _once(inputs)
        count = len(next(iter(each[0].values())))
        was_training = task.training
        task.eval()
        try:
            parts = [
                _each(task, self.tensors, _rows(each, [slice(first, first + at_once)] * len(each)))
                for first in range(0, count, at_once)
            ]
        finally:
            task.train(was_training)
        return torch.cat(parts, dim=1)


def fit_together(
    task: ClassificationTask,
    inputs: Inputs,
    labels: Tensor,
    settings: Sequence[Setting],
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    stand_ins: Sequence[float] = (),
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    after_step: Callable[[int, int], object] = lambda done, steps: None,
    after_epoch: Callable[[int, Trained, Tensor], object] = lambda epoch, trained, losses: None,
) -> Trained:
    """Train a task with every setting; the task's own tensors do not change.

    Order of the images, schedule and loss are those of `kora fit` with this seed, on one process.

    Args:
        task: Built; its strategy has a `frozen_pass`.
        inputs: Its cached features of n training images.
        labels: (n,), of these images.
        settings: One for each fit.
        epochs: How often each image is seen.
        batch_size: B, images a step.
        seed: Seed of the order of the images.
        stand_ins: Probabilities of dropout in the task that stand for those of each setting.
        autocast: Makes the context of the forward passes.
        after_step: Called with the number of finished steps, and of all.
        after_epoch: Called with the number of the epoch, from 0, the tensors as they are, and the
            mean training loss (S,) of that epoch.

    Raises:
        ValueError: The strategy has a regulariser, a stand-in goes into no dropout of torch's, or
            fits have different numbers of images.
    """
    if task.adapter.penalty() is not None:
        raise ValueError(f"{task.label} has a regulariser: train it with kora fit.")
    undecayed = {f"adapter.{name}" for name in task.backbone.model.no_weight_decay()}
    trainables = task.trainables()
    names = {id(parameter): name for name, parameter in trainables.items()}
    common = Start(trainables, inputs, labels, seed)
    starts = [one.start or common for one in settings]
    own = _once(starts)
    if any(len(one.labels) != len(own[0].labels) for one in own):
        raise ValueError("They have different numbers of training images: train them alone.")
    kinds = []
    for group in parameter_groups(trainables, head_lr=1.0, undecayed=undecayed):
        rates = [one.head_lr if "lr" in group else one.lr for one in settings]
        decays = [group.get("weight_decay", one.weight_decay) for one in settings]
        keys = [names[id(tensor)] for tensor in group["params"]]
        tensors = [{key: start.tensors[key] for key in keys} for start in starts]
        kinds.append(_Kind(tensors, list(zip(rates, decays, strict=True))))
    stacked = {name: tensor for kind in kinds for name, tensor in kind.stacked.items()}
    device, images = own[0].labels.device, len(own[0].labels)
    batches = -(-images // batch_size)
    steps = epochs * batches
    factor = schedule_factor(task.schedule, total_steps=steps, warmup_fraction=task.warmup_fraction)
    orders = {one.seed: EpochShuffle(images, seed=one.seed) for one in own}
    columns = zip(*(one.dropouts for one in settings), strict=True)
    shares = [torch.tensor(column, device=device) for column in columns]
    dropouts = dict(zip(stand_ins, shares, strict=True))
    trained = Trained({name: tensor.detach() for name, tensor in stacked.items()})  # as they move
    was_training = task.training
    task.train()
    try:
        _require_dropouts(task, rows_of(own[0].inputs, slice(2)), stand_ins)
        with flushed(device):
            for epoch in range(epochs):
                summed_S = torch.zeros(len(settings), device=device)
                places = {}
                for seed_of_order, order in orders.items():
                    order.set_epoch(epoch)
                    places[seed_of_order] = torch.split(torch.tensor(list(order)), batch_size)
                for at in range(batches):
                    step = epoch * batches + at
                    each = [places[one.seed][at] for one in own]
                    rows = _rows([one.inputs for one in own], each)
                    with autocast():
                        logits_SBK = _each(task, stacked, rows, dropouts)
                    labels_SB = torch.stack([
                        one.labels[some] for one, some in zip(own, each, strict=True)
                    ])  # fmt: skip
                    target_SB = labels_SB.expand(len(settings), -1)
                    losses_SB = F.cross_entropy(
                        logits_SBK.flatten(0, 1).float(), target_SB.flatten(),
                        label_smoothing=task.label_smoothing, reduction="none",
                    ).view_as(target_SB)  # fmt: skip
                    losses_S = losses_SB.mean(dim=1)
                    torch.autograd.backward(losses_S.sum())
                    summed_S += losses_S.detach()
                    for kind in kinds:
                        kind.step(step, factor(step))
                    after_step(step + 1, steps)
                after_epoch(epoch, trained, summed_S / batches)
    finally:
        task.train(was_training)
    return trained


class _Kind:
    """Tensors with the same rates in a fit, and AdamW on them.

    A strategy has many small tensors, and an optimiser is slow with many: those of a fit are one
    row here. torch's optimiser would have a group for each fit, and spend more time on the groups
    than on their numbers, so that this calls torch's fused step itself.

    Args:
        starts: Tensors with which each of the S fits begins.
        rates: Learning rate and weight decay of each.
    """

    def __init__(
        self, starts: Sequence[Mapping[str, Tensor]], rates: Sequence[tuple[float, float]]
    ) -> None:
        values_Sn = torch.stack([
            torch.cat([tensor.detach().flatten() for tensor in start.values()]) for start in starts
        ])  # fmt: skip
        tensors = starts[0]
        sizes = [tensor.numel() for tensor in tensors.values()]
        #: The tensors of all fits, (S, ...) each, which are parts of the rows.
        self.stacked = {
            name: part.view(-1, *tensor.shape).requires_grad_()
            for (name, tensor), part in zip(
                tensors.items(), values_Sn.split_with_sizes(sizes, dim=1), strict=True
            )
        }
        self._rates = rates
        self._memory_Sn = torch.empty_like(values_Sn) if len(tensors) > 1 else None
        rows = values_Sn, torch.zeros_like(values_Sn), torch.zeros_like(values_Sn)
        self._rows = list(zip(*(row.unbind() for row in rows), strict=True))

    def step(self, number: int, factor: float) -> None:
        """Move by the gradients, with learning rates times `factor`, and forget them."""
        parts = [
            (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).flatten(1)
            for tensor in self.stacked.values()
        ]
        # Into the same memory, as new pages take longer than the numbers.
        gradients_Sn = torch.cat(parts, dim=1, out=self._memory_Sn) if len(parts) > 1 else parts[0]
        steps = torch.tensor(number + 1.0, device=gradients_Sn.device)
        for (row, mean, square), gradient, (lr, decay) in zip(
            self._rows, gradients_Sn, self._rates, strict=True
        ):
            torch._fused_adamw_(
                [row], [gradient], [mean], [square], [], [steps], lr=lr * factor, beta1=0.9,
                beta2=0.999, weight_decay=decay, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
        for tensor in self.stacked.values():
            tensor.grad = None


def rows_of(inputs: Inputs, places: Tensor | slice) -> dict[str, Tensor]:
    """The inputs of some images."""
    return {name: tensor[places] for name, tensor in inputs.items()}


def _once(each: Sequence[T]) -> Sequence[T]:
    """The first alone, if it is that of all fits."""
    return each[:1] if all(one is each[0] for one in each) else each


def _rows(each: Sequence[Inputs], places: Sequence[Tensor | slice]) -> list[dict[str, Tensor]]:
    """The inputs of a batch: one for all fits, or one for each."""
    return [rows_of(inputs, some) for inputs, some in zip(each, places, strict=True)]


def _each(
    task: ClassificationTask,
    stacked: Mapping[str, Tensor],
    rows: Sequence[Inputs],
    dropouts: Mapping[float, Tensor] | None = None,
) -> Tensor:
    """Logits (S, B, K) by every fit, of the same images or each of its own (`_rows`).

    `dropouts` are (S,) of each stand-in.
    """
    module = _AdapterAndHead(task)

    def one(tensors: dict[str, Tensor], shares: dict[float, Tensor], inputs: Inputs) -> Tensor:
        with _Together(shares):
            logits: Tensor = functional_call(module, tensors, (inputs,))
        return logits

    inputs, at = rows[0], None
    if len(rows) > 1:
        inputs, at = {name: torch.stack([one[name] for one in rows]) for name in rows[0]}, 0
    each = vmap(one, in_dims=(0, 0, at), randomness="different")
    found: Tensor = each(dict(stacked), dict(dropouts or {}), inputs)
    return found


def _require_dropouts(task: ClassificationTask, inputs: Inputs, stand_ins: Sequence[float]) -> None:
    """Refuse a stand-in that the task, in training, does not give to torch's dropout."""
    met = _Together(dict.fromkeys(stand_ins, torch.zeros(())))
    with torch.no_grad(), met:
        _AdapterAndHead(task)(inputs)
    if met.replaced != set(stand_ins):
        raise ValueError(f"{task.label} has a dropout that is not torch's: train it with kora fit.")


class _Together(TorchFunctionMode):
    """Within, layers compute for all fits at once what torch's `vmap` does not.

    A linear layer reads a shared input once. Dropout has a probability that is a tensor, for the
    number that stands for it.
    """

    def __init__(self, shares: Mapping[float, Tensor]) -> None:
        super().__init__()
        self._shares = shares
        #: The numbers that it has met.
        self.replaced: set[float] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear and [is_batchedtensor(one) for one in args[:2]] == [False, True]:
            return _read_once(*args, **kwargs)
        share = self._shares.get(kwargs.get("p")) if func is F.dropout else None
        if share is None or not kwargs.get("training", True):
            return func(*args, **kwargs)
        (x,) = args
        self.replaced.add(kwargs["p"])
        return x * (torch.rand_like(x) >= share) / (1 - share)


def _read_once(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer of each fit, inside of `vmap`, on the same input (..., I): one matrix product.

    torch itself copies the input for each fit.
    """
    level, of_weight = maybe_get_level(weight), maybe_get_bdim(weight)
    weight_SOI = get_unwrapped(weight).movedim(of_weight, 0)
    found = F.linear(x, weight_SOI.flatten(0, 1)).view(*x.shape[:-1], *weight_SOI.shape[:2])
    outputs: Tensor = _add_batch_dim(found, found.ndim - 2, level)
    return outputs if bias is None else outputs + bias


class _AdapterAndHead(nn.Module):
    """Adapter and head without the backbone, whose modules would be searched at every step."""

    def __init__(self, task: ClassificationTask) -> None:
        super().__init__()
        self.adapter, self.head = task.adapter, task.head

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits of cached features, as the task computes them."""
        assert self.head is not None, "the task is built"
        logits: Tensor = self.head(self.adapter.frozen_pass().features(inputs))
        return logits
