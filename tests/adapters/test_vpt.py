"""Claims about VPT, against the published computation written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kora.adapters import VPT
from kora.adapters.base import place_of
from kora.backbone.vit import Backbone, Features
from tests.support.factory import FAMILIES, built, family, kick, labels_for, nano

#: Families whose attention knows the place of each token.
PLACED = tuple(
    f"narrow_{name}"
    for name in ("vit_small_patch16_dinov3", "eva02_tiny_patch14_224", "beit_base_patch16_224")
)


def prompted(backbone: Backbone, **options: Any) -> VPT:
    torch.manual_seed(5)
    strategy = VPT(4, **options)
    strategy.attach(backbone)
    with torch.no_grad():
        for parameter in strategy.parameters():
            parameter.mul_(10)
    return strategy.eval()


def loud(name: str) -> Backbone:
    """A family without the 1e-5 of its layer scales, in which random blocks change nothing."""
    backbone = family(name)
    for key, parameter in backbone.model.named_parameters():
        if key.endswith("gamma"):
            parameter.data.fill_(1)
    return backbone


def as_published(backbone: Backbone, strategy: VPT, images: Tensor) -> Tensor:
    """Tokens (B, N, D) with the prompts at their published place, behind CLS; VPT's algorithm."""
    model, first = backbone.model, backbone.num_prefix_tokens
    x = model.norm_pre(model._pos_embed(model.patch_embed(backbone.preprocess(images))))
    prompts = [prompt.prompt_KD for prompt in strategy.tokens.values()]
    x = torch.cat((x[:, :first], prompts[0].expand(len(x), -1, -1), x[:, first:]), dim=1)
    for i, block in enumerate(model.blocks):
        if i and strategy.deep:
            mine = prompts[i].expand(len(x), -1, -1)
            x = torch.cat((x[:, :first], mine, x[:, first + mine.shape[1] :]), dim=1)
        x = block(x)
    x = model.norm(x)
    return torch.cat((x[:, :first], x[:, first + prompts[0].shape[0] :]), dim=1)


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("name", ["vit_nano", "narrow_vit_small_patch14_reg4_dinov2"])
def test_it_equals_the_published_computation(name: str, deep: bool, images: Tensor) -> None:
    backbone, plain = (nano() if name == "vit_nano" else loud(name) for _ in range(2))
    strategy = prompted(backbone, deep=deep)
    with torch.no_grad():
        found: Features = strategy(backbone, images)
        expected = as_published(plain, strategy, images)
        frozen = plain(images)
    tokens = torch.cat((found.prefix, found.patches), dim=1)
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.pooled, expected[:, 0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found.pooled, frozen.pooled, atol=1e-2)
    assert not torch.allclose(found.patches, frozen.patches, atol=1e-2)


@pytest.mark.parametrize("deep", [True, False])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PLACED])
def test_heads_read_the_tokens_of_the_image_alone(name: str, deep: bool) -> None:
    backbone = family(name)
    image = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        frozen = backbone(image, levels=(1, 4))
        strategy = prompted(backbone, deep=deep)
        found = backbone(image, levels=(1, 4))
    assert strategy.tokens
    for mine, theirs in zip([found, *found.levels], [frozen, *frozen.levels], strict=True):
        assert mine.patches.shape == theirs.patches.shape
        assert mine.prefix.shape == theirs.prefix.shape
        assert not torch.equal(mine.patches, theirs.patches)
    tokens = torch.cat((found.prefix, found.patches), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(
            found.pooled, backbone.model.forward_head(tokens, pre_logits=True)
        )


@pytest.mark.parametrize("name", PLACED)
def test_a_backbone_whose_grid_it_would_break_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"VPT: the attention of {name} knows the place.*LoRA"):
        VPT().attach(family(name))


def test_the_counts_are_blocks_times_prompts_times_width() -> None:
    def count(**options: Any) -> int:
        strategy = VPT(**options)
        strategy.attach(nano())
        return sum(parameter.numel() for parameter in strategy.parameters())

    assert count(prompts=10) == 6 * 10 * 128
    assert count(prompts=7, deep=False) == 7 * 128
    assert count(prompts=3, blocks=[5, 0]) == 2 * 3 * 128


def test_prompts_start_uniform_within_the_bound_of_the_patch_embedding() -> None:
    strategy = VPT(500)
    strategy.attach(nano())
    bound = math.sqrt(6 / (3 * 8 * 8 + 128))
    drawn = torch.cat([prompt.prompt_KD.flatten() for prompt in strategy.tokens.values()])
    assert drawn.abs().max() <= bound
    assert drawn.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_every_prompt_gets_a_gradient(images: Tensor) -> None:
    task = built(VPT(2))
    torch.nn.functional.cross_entropy(task(images), labels_for(images)).backward()
    assert all(parameter.grad.abs().min() > 0 for parameter in task.adapter.parameters())


def test_prompts_cannot_be_folded_into_weights() -> None:
    backbone, strategy = nano(), VPT()
    strategy.attach(backbone)
    with pytest.raises(ValueError, match=r"VPT cannot be folded into the weights of vit_nano"):
        strategy.merged(backbone)


def test_dropout_runs_in_training_only(images: Tensor) -> None:
    task = kick(built(VPT(dropout=0.5)))
    assert torch.equal(task.eval()(images), task.eval()(images))
    assert not torch.equal(task.train()(images), task.train()(images))


def test_a_shallow_run_stands_apart_in_folders_and_tables() -> None:
    assert (VPT().label, VPT(deep=False).label) == ("VPT", "VPT-shallow")
    assert place_of("tokens.b03_prompts.prompt_KD") == ("3", "prompts")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": 0}, "VPT: prompts=0, expected 1 or more"),
        ({"dropout": 1.0}, r"VPT: dropout=1.0, expected a probability in \[0, 1\)"),
        ({"blocks": [6]}, "expected numbers from 0 to 5"),
        ({"blocks": []}, "at least one"),
        ({"deep": False, "blocks": [0]}, "Shallow prompts enter at the first block"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VPT(**options).attach(nano())
