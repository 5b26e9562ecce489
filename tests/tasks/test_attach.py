"""kora.attach: a strategy on a timm model that is there, in a loop of one's own."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import kora
from kora.adapters import (
    BitFit,
    Bottleneck,
    DoRA,
    FullFineTune,
    KoRA,
    LogitReadout,
    LoRA,
    MultiLayerProbe,
    PaperForm,
    QueryReadout,
    Strategy,
)
from kora.tasks.attach import Attached

MODELS = {"vit_nano": 64, "vit_tiny_patch16_224": 32, "eva02_tiny_patch14_224": 28}
SITES = {"eva02_tiny_patch14_224": ["proj", "fc1", "fc2"]}


def model_of(name: str = "vit_nano", classes: int = 3, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return timm.create_model(name, img_size=MODELS[name], num_classes=classes)


def pixels(name: str = "vit_nano") -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(6, 3, MODELS[name], MODELS[name], generator=generator)


def trained(adapter: Strategy, name: str = "vit_nano", steps: int = 3) -> Attached:
    model = kora.attach(model_of(name), adapter)
    optimizer = torch.optim.AdamW(model.trainables().values(), lr=0.01)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(pixels(name)), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("name", MODELS)
def test_it_begins_as_the_model_and_trains_adapter_and_head_alone(name: str) -> None:
    plain = model_of(name).eval()
    model = kora.attach(model_of(name), LoRA(2, sites=SITES.get(name, ["qkv", "proj"])))
    assert torch.equal(model.eval()(pixels(name)), plain(pixels(name)))
    needs_grad = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.partition(".")[0] for n in needs_grad} == {"adapter", "head"}
    assert len(needs_grad) == len(model.trainables())
    frozen = [p for p in model.backbone.parameters() if not p.requires_grad]
    before = [p.clone() for p in frozen]
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizer = torch.optim.AdamW(model.trainables().values(), lr=0.01)
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model.train()(pixels(name)), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    assert all(map(torch.equal, frozen, before))


@pytest.mark.parametrize("training", [True, False])
def test_it_is_in_the_mode_of_the_model(training: bool) -> None:
    model = kora.attach(model_of().train(training), LoRA(2, dropout=0.5))
    for parameter in model.trainables().values():
        torch.nn.init.normal_(parameter)
    assert torch.equal(model(pixels()), model(pixels())) is not training


@pytest.mark.parametrize("name", MODELS)
def test_merged_it_is_timms_own_model_with_the_same_logits(name: str) -> None:
    model = trained(LoRA(2, sites=SITES.get(name, ["qkv", "proj"])), name)
    plain = model.merged()
    assert type(plain) is type(model_of(name))
    assert not any(type(m).__module__.startswith("kora") for m in plain.modules())
    torch.testing.assert_close(plain(pixels(name)), model(pixels(name)), rtol=0, atol=1e-5)
    assert not torch.allclose(plain(pixels(name)), model_of(name).eval()(pixels(name)), atol=1e-3)


@pytest.mark.parametrize(
    "make", [lambda: LoRA(2), lambda: KoRA(PaperForm(2), 4), BitFit, FullFineTune]
)
def test_what_is_saved_comes_back_on_the_same_weights_alone(make: Any, tmp_path: Path) -> None:
    model = trained(make())
    model.save(tmp_path / "adapter")
    again = kora.attach(model_of(), make()).load(tmp_path / "adapter").eval()
    assert torch.equal(again(pixels()), model(pixels()))
    with pytest.raises(ValueError, match=r"was trained on .vit_nano. at 64 pixels with weights"):
        kora.attach(model_of(seed=1), make()).load(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"Make model.adapter equal to it"):
        kora.attach(model_of(), LoRA(3)).load(tmp_path / "adapter")
    other_head = model_of()
    other_head.reset_classifier(5)
    with pytest.raises(ValueError, match=r"The head in .* does not fit this model"):
        kora.attach(other_head, make()).load(tmp_path / "adapter")


def test_load_adapter_reads_it_where_the_weights_are_in_a_file(tmp_path: Path) -> None:
    bare = model_of(classes=0)
    save_file(bare.state_dict(), tmp_path / "w.safetensors")
    with_head = model_of()
    with_head.load_state_dict(bare.state_dict(), strict=False)
    model = kora.attach(with_head, LoRA(2))
    model.save(tmp_path / "adapter")
    loaded = kora.load_adapter(tmp_path / "adapter", weights=str(tmp_path / "w.safetensors"))
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = loaded.backbone.mean, loaded.backbone.std
    mine = model.eval()((images / 255 - mean) / std)
    torch.testing.assert_close(loaded(images), mine, rtol=0, atol=1e-5)


def test_load_adapter_asks_for_the_weights_of_a_model_that_was_given(tmp_path: Path) -> None:
    kora.attach(model_of(), LoRA(2)).save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Give weights= .* 'pretrained' if they were timm"):
        kora.load_adapter(tmp_path)


def test_without_a_classifier_it_gives_the_pooled_vector() -> None:
    model = kora.attach(model_of(classes=0), LoRA(2)).eval()
    assert model(pixels()).shape == (6, 128)
    assert {name.partition(".")[0] for name in model.trainables()} == {"adapter"}


@pytest.mark.parametrize(
    ("make", "adapter", "said"),
    [
        (lambda: timm.create_model("resnet10t"), LoRA(2), "VisionTransformer family"),
        (lambda: torch.nn.Linear(2, 2), LoRA(2), "expected a model of timm.create_model"),
        (lambda: timm.create_model("vit_nano", mlp_ratio=1), LoRA(2), "not as timm builds it"),
        (
            lambda: timm.create_model("vit_nano", act_layer="relu"),
            LoRA(2),
            r"not as timm builds it: 'blocks\.0\.mlp\.act' differs",
        ),
        (
            lambda: timm.create_model("vit_nano", global_pool="avg", fc_norm=False),
            LoRA(2),
            "not as timm builds it: 'global_pool' differs",
        ),
        (model_of, MultiLayerProbe(), "more than the pooled vector"),
        (model_of, KoRA(PaperForm(inject=False), readout=QueryReadout()), "more than the pooled"),
        (model_of, LoRA(1000), "1 to 128"),
    ],
    ids=["ResNet", "no timm", "options", "activation", "pooling", "layers", "queries", "rank"],
)
def test_what_does_not_fit_is_one_clear_error(make: Any, adapter: Strategy, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kora.attach(make(), adapter)


def test_twice_is_refused() -> None:
    model = model_of()
    kora.attach(model, LoRA(2))
    with pytest.raises(ValueError, match="attach once"):
        kora.attach(model, LoRA(2))


@pytest.mark.parametrize(
    "refused",
    [LoRA(1000), MultiLayerProbe(), KoRA(readout=LogitReadout())],
    ids=["before", "after", "with layers wrapped"],
)
def test_a_model_that_was_refused_is_as_it_was(refused: Strategy) -> None:
    model = model_of()
    head, before = model.head, model.requires_grad_(True)(pixels())
    with pytest.raises(ValueError, match=r"1 to 128|pooled vector"):
        kora.attach(model, refused)
    assert model.head is head
    assert model.num_classes == 3
    assert all(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(kora.attach(model, LoRA(2))(pixels()), before)


def test_a_model_of_others_that_has_a_classifier_is_told_as_any_other() -> None:
    class Other(torch.nn.Linear):
        def get_classifier(self) -> torch.nn.Module:
            return self

    with pytest.raises(ValueError, match=r"expected a model of timm\.create_model"):
        kora.attach(Other(2, 2), LoRA(2))


@pytest.mark.parametrize("adapter", [LoRA(2), BitFit()], ids=["LoRA", "BitFit"])
def test_a_strategy_is_for_one_model(adapter: Strategy) -> None:
    kora.attach(model_of(), adapter)
    other = model_of()
    with pytest.raises(ValueError, match=r"is in use\. Make another one"):
        kora.attach(other, adapter)
    assert other(pixels()).shape == (6, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"num_heads": 6},
        {"norm_layer": partial(torch.nn.LayerNorm, eps=0.1)},
        {"dynamic_img_size": True},
    ],
    ids=["heads", "eps", "size"],
)
def test_a_model_that_computes_otherwise_with_the_same_weights_is_refused(
    options: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match="not as timm builds it"):
        kora.attach(timm.create_model("vit_tiny_patch16_224", **options), LoRA(2))


def test_a_refused_load_changes_nothing(tmp_path: Path) -> None:
    trained(LoRA(2)).save(tmp_path)
    model = kora.attach(model_of(classes=2), LoRA(2)).eval()
    before = model(pixels())
    with pytest.raises(ValueError, match=r"The head in .* does not fit"):
        model.load(tmp_path)
    assert torch.equal(model(pixels()), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("make", [DoRA, KoRA, Bottleneck, LoRA])
def test_it_has_the_type_of_the_model(make: Any, dtype: torch.dtype) -> None:
    model = kora.attach(model_of().to(dtype), make())
    F.cross_entropy(model(pixels().to(dtype)), torch.tensor([0, 1, 2, 0, 1, 2])).backward()
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    if make is LoRA:
        assert {parameter.dtype for parameter in model.merged().parameters()} == {dtype}


@pytest.mark.parametrize("adapter", ["lora", LoRA, None], ids=["name", "class", "nothing"])
def test_what_is_no_strategy_is_told(adapter: Any) -> None:
    with pytest.raises(ValueError, match="expected a strategy, LoRA"):
        kora.attach(model_of(), adapter)
