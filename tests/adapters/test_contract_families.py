"""Claims that every strategy holds on a tiny random model of every family of backbones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from kora.adapters import Strategy
from kora.adapters.folder import ADAPTER_WEIGHTS, load_adapter, save_adapter
from kora.backbone.vit import Backbone, Features
from kora.tasks import ClassificationTask
from tests.support.adapters import fitting, loss_of
from tests.support.factory import built, kick
from tests.support.families import TINY, tiny
from tests.support.strategies import STRATEGIES

ACCEPTED = [
    (name, family)
    for name, entry in STRATEGIES.items()
    for family in TINY
    if entry.everywhere and family not in entry.refused
]
REFUSED = [
    *((n, family, message) for n, e in STRATEGIES.items() for family, message in e.refused.items()),
    *(
        (n, family, r"never called|has no site")
        for n, e in STRATEGIES.items()
        for family in e.needs
    ),
]
#: Where the frozen layers have no bias that a trained shift could go into.
SHIFTS_NO_BIAS = [("SSF", "tiny_dinov3"), ("SSF", "tiny_clip")]
on_every_family = pytest.mark.parametrize(("name", "family"), ACCEPTED)


def task_of(
    name: str, family: str, *, checkpointing: bool = False, seed: int = 2
) -> ClassificationTask:
    strategy, backbone = fitting(STRATEGIES[name], family)
    backbone.model.set_grad_checkpointing(checkpointing)
    return built(strategy, backbone=backbone, seed=seed)


def tensors(features: Features) -> list[Tensor]:
    inner = [tensor for level in features.levels for tensor in level]
    return [features.pooled, features.patches, features.prefix, *inner]


@on_every_family
def test_it_starts_as_it_says_merges_to_equal_features_and_trains_what_is_declared(
    name: str, family: str, images: Tensor
) -> None:
    task, frozen = task_of(name, family), tiny(family)
    check_start(name, task, frozen, images)
    kick(task)
    check_merged(name, family, task, frozen, images)
    check_step(name, task.train(), images)


def check_start(name: str, task: ClassificationTask, frozen: Backbone, images: Tensor) -> None:
    # Attention and products may take another kernel where something trains, which rounds otherwise:
    # products look at `requires_grad` even without gradients.
    training = [parameter for parameter in task.parameters() if parameter.requires_grad]
    task.requires_grad_(False)
    task.backbone.levels = frozen.levels = (0, 1)
    with torch.no_grad():
        mine, theirs = tensors(task.features(images)), tensors(frozen(images))
    same = [torch.equal(one, other) for one, other in zip(mine, theirs, strict=True)]
    assert all(same) != STRATEGIES[name].starts_elsewhere
    for parameter in training:
        parameter.requires_grad_(True)


def check_merged(
    name: str, family: str, task: ClassificationTask, bare: Backbone, images: Tensor
) -> None:
    """Its weights in a model of timm give what it gives, or it says that it cannot be merged."""
    no_bias = "has no bias to take its shift" if (name, family) in SHIFTS_NO_BIAS else None
    never = type(task.adapter).merged is Strategy.merged
    refusal = "cannot be folded into the weights of" if never else no_bias
    if refusal is not None:
        with pytest.raises(ValueError, match=refusal):
            task.adapter.merged(task.backbone)
        return
    bare.model.load_state_dict(task.adapter.merged(task.backbone))
    with torch.no_grad():
        mine, theirs = tensors(task.features(images)), tensors(bare(images))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def check_step(name: str, task: ClassificationTask, images: Tensor) -> None:
    """A step changes what is declared, and nothing else."""
    everything = dict(task.named_parameters()) | dict(task.named_buffers())
    before = {key: tensor.detach().clone() for key, tensor in everything.items()}
    declared = {id(parameter) for parameter in task.trainables().values()}
    assert {id(p) for p in task.parameters() if p.requires_grad} == declared
    optimizer = torch.optim.AdamW([p for p in task.parameters() if p.requires_grad], lr=0.01)
    loss_of(task, images).backward()
    idle = {key for key, p in everything.items() if id(p) in declared and p.grad is None}
    optimizer.step()
    changed = {key for key, tensor in everything.items() if not torch.equal(tensor, before[key])}
    assert changed == {key for key, p in everything.items() if id(p) in declared} - idle
    # Fine-tuning alone may own weights that do not reach the pooled vector.
    assert not idle or name == "FullFineTune", idle


#: Each strategy on some families, and each family with some strategies.
SAVED = [
    (name, family)
    for name, family in ACCEPTED
    if (list(STRATEGIES).index(name) + list(TINY).index(family)) % 5 == 0
]


@pytest.mark.parametrize(("name", "family"), SAVED)
def test_what_is_saved_gives_equal_logits(
    name: str, family: str, images: Tensor, tmp_path: Path
) -> None:
    task, other = kick(task_of(name, family)), task_of(name, family, seed=8)
    save_adapter(tmp_path, task.kept_tensors(), adapter=task.adapter, backbone=task.backbone)
    load_adapter(tmp_path, other.adapter, other.backbone)
    assert torch.equal(other.features(images).pooled, task.features(images).pooled)
    other.load_state_dict(load_file(tmp_path / ADAPTER_WEIGHTS))
    assert torch.equal(other(images), task(images))


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize("name", ["FullFineTune", "KoRA"])
def test_autocast_and_checkpointing_give_the_same_loss(
    name: str, family: str, images: Tensor
) -> None:
    task, saving = kick(task_of(name, family)), kick(task_of(name, family, checkpointing=True))
    loss = loss_of(task, images)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_of(task, images).item() == pytest.approx(loss.item(), rel=0.03)
    again = loss_of(saving.train(), images)
    again.backward()
    assert again.item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(("name", "family", "message"), REFUSED)
def test_what_does_not_fit_a_family_is_refused(name: str, family: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STRATEGIES[name]().attach(tiny(family))
