"""Claims about KoRA as nodes, composer and readout; the reference is written for each token."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters import (
    ClsReadout,
    DepthAttention,
    FactoredMatrix,
    Injection,
    KoRA,
    LogitReadout,
    LoRA,
    PaperForm,
    PlainMatrix,
    RefinedForm,
    ResidualSequential,
    Sequential,
    Sum,
    describe,
)
from kora.adapters.graph.readouts import Readout
from kora.backbone.sites import ALL_SITES
from kora.backbone.vit import Backbone
from kora.tasks import ClassificationTask
from tests.support.factory import built, family, kick, labels_for, nano
from tests.support.families import tiny

LAYERS = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


SIDE = PaperForm(2, inject=False, sites=["proj"])
ZERO = RefinedForm(PlainMatrix("zero"), sites=["proj"])
FACTORS = RefinedForm(FactoredMatrix(2), sites=["proj"], inject=Injection(2, sites=["proj"]))


class SkipSum(Sequential):
    """A composer that is not the default."""

    def forward(self, nodes: Any) -> Tensor:
        return super().forward(nodes) + sum(nodes)


def made(**options: Any) -> KoRA:
    """A KoRA of the paper's nodes; some of the options are theirs."""
    own = {k: options.pop(k) for k in inspect.signature(PaperForm).parameters if k in options}
    return KoRA(PaperForm(**own), **options)


def random_kora(backbone: Backbone, **options: Any) -> KoRA:
    """KoRA with no zero left in it."""
    torch.manual_seed(6)
    strategy = made(**{"rank": 3, "d_comp": 5, **options})
    strategy.attach(backbone)
    with torch.no_grad():
        for parameter in strategy.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.4)
    return strategy


def reference(strategy: KoRA, frozen: Backbone, images: Tensor) -> Tensor:
    """Equations (2) to (4) token by token from the inputs of every linear layer of `frozen`."""
    inputs: dict[str, Tensor] = {}
    for i, block in enumerate(frozen.model.blocks):
        for name, path in LAYERS.items():
            layer = block.get_submodule(path)

            def keep(_: nn.Module, args: tuple[Tensor], key: str = f"b{i:02d}_{name}") -> None:
                inputs[key] = args[0]

            layer.register_forward_pre_hook(keep)
    pooled = frozen(images).pooled
    vectors = []
    for key, node in strategy.nodes.items():
        tokens_BNC = torch.stack(
            [
                x_BI @ node.delta.down_RI.T @ node.delta.up_OR.T @ node.project_CO.T
                for x_BI in inputs[key].unbind(1)
            ],
            dim=1,
        )
        pools = {"mean": tokens_BNC.mean(1), "cls": tokens_BNC[:, 0], "tokens": tokens_BNC}
        vectors.append(pools[strategy.node_form.pool])
    phi, psi = strategy.composer.phi, strategy.composer.psi
    c = F.gelu(vectors[0] @ phi[0].weight.T + phi[0].bias)
    for i in range(1, len(vectors)):
        forwarded = F.gelu(c @ psi[i - 1].weight.T + psi[i - 1].bias)
        c = F.gelu((vectors[i] + forwarded) @ phi[i].weight.T + phi[i].bias)
    c = c.mean(1) if strategy.node_form.pool == "tokens" else c
    readout = strategy.readout
    return pooled + strategy.alpha * (c @ readout.weight_DC.T + readout.bias_D)


@pytest.mark.parametrize("pool", ["mean", "cls", "tokens"])
def test_the_side_network_equals_the_paper_written_for_each_token(
    pool: Any, images: Tensor
) -> None:
    backbone = nano()
    strategy = random_kora(backbone, alpha=0.7, inject=False, pool=pool)
    found, expected = strategy(backbone, images).pooled, reference(strategy, nano(), images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, nano()(images).pooled, atol=1e-3)


def test_pooling_first_equals_pooling_last(images: Tensor) -> None:
    """mean_n(P B A x_n) = P B A mean_n(x_n), for one node of each form."""
    backbone = nano()
    seen: list[Tensor] = []
    backbone.model.blocks[1].mlp.fc1.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for inject in (False, True):
        strategy = random_kora(nano(), inject=inject)
        node = strategy.nodes["b01_fc1"]
        backbone(images)
        x = seen.pop()
        node.listen()
        node.observe(x)
        tokens = (x @ node.delta.down_RI.T) @ node.delta.up_OR.T @ node.project_CO.T
        torch.testing.assert_close(node.vector(node.taken()), tokens.mean(1), rtol=1e-5, atol=1e-5)


def test_injected_it_is_lora_at_the_sites_and_the_composition_on_top(images: Tensor) -> None:
    backbone, merged = nano(), nano()
    strategy = random_kora(backbone, alpha=0.3, inject=True)
    for i, block in enumerate(merged.model.blocks):
        for name, path in LAYERS.items():
            delta = strategy.nodes[f"b{i:02d}_{name}"].delta
            block.get_submodule(path).weight.data += 0.3 * delta.up_OR @ delta.down_RI
    found = strategy(backbone, images)
    torch.testing.assert_close(found.patches, merged(images).patches, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        found.pooled, reference(strategy, merged, images), rtol=1e-4, atol=1e-4
    )


def test_the_side_network_leaves_every_block_as_it_was_to_the_bit(images: Tensor) -> None:
    backbone = nano()
    strategy = random_kora(backbone, inject=False)
    adapted, frozen = strategy(backbone, images), nano()(images)
    assert torch.equal(adapted.patches, frozen.patches)
    assert torch.equal(adapted.prefix, frozen.prefix)
    assert not torch.allclose(adapted.pooled, frozen.pooled, atol=1e-3)


def test_injection_changes_block_outputs_once_b_is_not_zero(images: Tensor) -> None:
    backbone = nano()
    strategy = KoRA(PaperForm(inject=True))
    strategy.attach(backbone)
    frozen = nano()(images)
    assert torch.equal(strategy(backbone, images).patches, frozen.patches)
    with torch.no_grad():
        strategy.nodes["b00_qkv"].delta.up_OR.fill_(0.1)
    assert not torch.allclose(strategy(backbone, images).patches, frozen.patches, atol=1e-4)


def test_no_gradient_passes_through_the_backbone_of_a_side_network(images: Tensor) -> None:
    for inject in (False, True):
        task = kick(built(KoRA(PaperForm(inject=inject))))
        passed: list[tuple[bool, bool]] = []
        task.backbone.model.blocks[5].register_forward_hook(
            lambda *args, passed=passed: passed.append(
                (args[2].requires_grad, torch.is_grad_enabled())
            )
        )
        F.cross_entropy(task(images), labels_for(images)).backward()
        assert passed == [(inject, inject)]
        assert all(p.grad is None for p in task.backbone.parameters())
        assert all(p.grad is not None for p in task.trainables().values())


@pytest.mark.parametrize("inject", [False, True])
def test_it_starts_as_the_identity_and_not_with_the_documented_exception(
    inject: bool, images: Tensor
) -> None:
    frozen = nano()(images).pooled
    for init, equal in (("zero", True), ("default", False)):
        backbone = nano()
        strategy = KoRA(PaperForm(inject=inject), readout=ClsReadout(init))
        strategy.attach(backbone)
        assert torch.equal(strategy(backbone, images).pooled, frozen) == equal


@pytest.mark.parametrize("inject", [False, True])
def test_it_leaves_the_identity_by_training(inject: bool, images: Tensor) -> None:
    """Readout and B both start at zero; two steps must be enough to move B as well."""
    task = built(KoRA(PaperForm(inject=inject)))
    start = {name: p.detach().clone() for name, p in task.trainables().items()}
    optimizer = torch.optim.SGD(task.trainables().values(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(task(images), labels_for(images)).backward()
        optimizer.step()
    now = dict(task.trainables())
    assert not torch.equal(now["adapter.readout.weight_DC"], start["adapter.readout.weight_DC"])
    last = "adapter.nodes.b05_fc1.delta.up_OR" if inject else "adapter.nodes.b05_fc2.delta.up_OR"
    assert now[last].abs().max() > 0


def test_the_nodes_of_a_vit_of_twelve_blocks_are_48_in_forward_order() -> None:
    strategy = KoRA(PaperForm(sites=["fc2", "qkv", "fc1", "proj"]))
    strategy.attach(family("narrow_vit_tiny_patch16_224"))
    assert list(strategy.nodes) == [f"b{i:02d}_{name}" for i in range(12) for name in ALL_SITES]
    assert len(strategy.composer.phi) == 48
    assert len(strategy.composer.psi) == 47


def test_row_slices_are_nodes_too(images: Tensor) -> None:
    backbone = nano()
    strategy = random_kora(backbone, sites=["q", "v"], blocks=[1, 2])
    assert list(strategy.nodes) == ["b01_q", "b01_v", "b02_q", "b02_v"]
    assert strategy.nodes["b01_v"].project_CO.shape == (5, 128)
    assert not torch.equal(strategy(backbone, images).patches, nano()(images).patches)


def test_nothing_of_a_batch_is_kept_when_it_has_passed(images: Tensor) -> None:
    for inject in (False, True):
        backbone = nano()
        strategy = random_kora(backbone, inject=inject)
        strategy(backbone, images)
        assert all(node._kept is None for node in strategy.nodes.values())


def test_the_label_says_where_it_is_a_side_network() -> None:
    assert (KoRA().label, KoRA(PaperForm(inject=False)).label) == ("KoRA", "KoRA-side")


def test_the_pool_of_cls_is_refused_without_one() -> None:
    with pytest.raises(ValueError, match=r"pool='cls' reads the CLS.*siglip.*pool='mean'"):
        KoRA(PaperForm(pool="cls")).attach(family("narrow_vit_base_patch16_siglip_224"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "PaperForm: rank=0, expected 1 or more"),
        ({"d_comp": 0}, "KoRA: d_comp=0, expected 1 or more"),
        ({"alpha": 0.0}, "KoRA: alpha=0 multiplies the adapter away"),
        ({"pool": "max"}, "PaperForm: pool='max', expected one of mean, cls, tokens"),
        ({"sites": ["attention"]}, "no site 'attention'"),
        ({"blocks": []}, "at least one"),
        ({"rank": 200}, "rank=200 at site"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**options).attach(nano())


@pytest.mark.parametrize(
    "options",
    [
        {"composer": Sum(), "node_form": SIDE},
        {"composer": DepthAttention(), "node_form": SIDE},
        {"composer": ResidualSequential(), "node_form": ZERO},
        {"composer": Sum(), "node_form": ZERO, "readout": LogitReadout()},
        {"composer": Sum(), "node_form": RefinedForm(PlainMatrix("zero"), inject=Injection(2))},
    ],
)
def test_what_starts_with_nothing_but_zeros_is_refused_as_it_would_never_train(
    options: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match=r"nothing of the composition would ever.*Logit"):
        built(KoRA(d_comp=3, **options))


@pytest.mark.parametrize(
    "options",
    [
        {"composer": Sum(), "node_form": PaperForm(2, sites=["proj"])},
        {"composer": Sum(), "node_form": FACTORS},
        {"composer": Sum(), "node_form": RefinedForm(FactoredMatrix(2), sites=["proj"])},
        {"composer": Sum(), "node_form": SIDE, "readout": ClsReadout("default")},
        {"composer": Sequential(), "node_form": SIDE},
        {"composer": Sum(), "node_form": ZERO, "readout": LogitReadout("orthogonal")},
    ],
)
def test_all_of_it_trains_within_a_few_steps_where_it_is_not_refused(
    options: dict[str, Any], images: Tensor
) -> None:
    strategy = KoRA(d_comp=8, **options)
    task = built(strategy)
    before = {name: tensor.detach().clone() for name, tensor in task.trainables().items()}
    optimizer = torch.optim.Adam(list(task.trainables().values()), lr=0.01, eps=1e-30)
    for _ in range(4):
        optimizer.zero_grad()
        F.cross_entropy(task(images), labels_for(images)).backward()
        optimizer.step()
    same = [name for name, tensor in task.trainables().items() if torch.equal(tensor, before[name])]
    assert not same


def over_lora(dropout: float = 0.0, **options: Any) -> KoRA:
    """One node at the last proj, and LoRA at proj and fc1 of all blocks."""
    inject = Injection(2, sites=["proj", "fc1"], dropout=dropout)
    form = RefinedForm(sites=["proj"], blocks=[-1], inject=inject)
    return KoRA(form, 3, composer=Sum(), **options)


def test_what_is_no_node_injects_as_lora_does_and_sends_nothing(images: Tensor) -> None:
    strategy = over_lora()
    task = built(strategy)
    assert list(strategy.nodes) == ["b05_proj"]
    assert len(strategy.silent) == 11
    lora = LoRA(2, sites=["proj", "fc1"])
    other = built(lora)
    with torch.no_grad():
        assert strategy.parts().keys() == set(lora.deltas)
        for key, own in strategy.parts().items():
            delta = lora.deltas[key]
            delta.down_RI.copy_(own.down_RI)
            delta.up_OR.copy_(own.up_OR.normal_())
    other.head.load_state_dict(task.head.state_dict())
    torch.testing.assert_close(task(images), other(images))  # Proj_final starts at zero


def test_nodes_pass_a_gradient_to_what_injects_before_them(images: Tensor) -> None:
    strategy = over_lora(readout=ClsReadout("default"))
    task = built(strategy)
    for name, tensor in task.trainables().items():
        if "up_OR" in name:
            torch.nn.init.normal_(tensor, std=0.01)
    with torch.no_grad():
        for tensor in task.head.parameters():
            tensor.normal_()
    sent: list[Tensor] = []
    strategy.observer = lambda vectors, composed: sent.extend(vectors)
    task(images)
    sent[0].sum().backward()
    for key in ("b00_proj", "b00_fc1", "b04_fc1"):
        assert strategy.silent[key].down_RI.grad.abs().max() > 0
    assert strategy.silent["b05_fc1"].down_RI.grad is None  # behind the node


def test_a_node_may_sit_where_nothing_is_injected(images: Tensor) -> None:
    form = RefinedForm(
        sites=["qkv"], blocks=[0, 2], inject=Injection(2, sites=["proj"], blocks=[1])
    )
    task = kick(built(KoRA(form, 3, composer=Sum())))
    assert list(task.adapter.nodes) == ["b00_qkv", "b02_qkv"]
    assert list(task.adapter.parts()) == ["b01_proj"]
    assert task(images).isfinite().all()


def test_blocks_that_are_not_there_are_one_clear_error() -> None:
    with pytest.raises(ValueError, match=r"blocks=\[7\] of vit_nano: expected numbers from 0 to 5"):
        built(KoRA(RefinedForm(blocks=[7], inject=Injection(2)), 3))


def test_dropout_is_of_all_that_injects_and_in_training_only(images: Tensor) -> None:
    strategy = over_lora(dropout=0.5)
    task = kick(built(strategy))
    assert torch.equal(task.eval()(images), task.eval()(images))
    assert not torch.equal(task.train()(images), task.train()(images))
    assert [delta.dropout for delta in strategy.parts().values()] == [0.5] * 12


def test_a_node_of_the_paper_sends_what_dropout_left(images: Tensor) -> None:
    """It has one A x, which its site adds and the composition reads."""
    task = kick(built(KoRA(PaperForm(2, sites=["fc2"], blocks=[-1], dropout=0.5), 3)))
    sent: list[Tensor] = []
    task.adapter.observer = lambda vectors, composed: sent.append(vectors[0])
    for _ in range(2):
        task.train()(images)
    assert not torch.equal(*sent)


@pytest.mark.parametrize("kind", [PaperForm, RefinedForm, Injection])
def test_a_dropout_that_cannot_be_is_one_clear_error(kind: Any) -> None:
    message = rf"{kind.__name__}: dropout=1.0, expected a probability in \[0, 1\)"
    with pytest.raises(ValueError, match=message):
        kind(dropout=1.0)


def test_a_side_network_drops_what_its_nodes_read(images: Tensor) -> None:
    form = PaperForm(2, inject=False, dropout=0.5)
    task = kick(built(KoRA(form, 3)))
    assert torch.equal(task.eval()(images), task.eval()(images))
    assert not torch.equal(task.train()(images), task.train()(images))


@pytest.mark.parametrize(
    ("readout", "classes", "expected"),
    [(LogitReadout, 7, 64), (LogitReadout, 100, 100), (ClsReadout, 100, 8)],
)
def test_a_d_comp_that_is_left_open_follows_the_classes_where_it_goes_to_the_logits(
    readout: Callable[[], Readout], classes: int, expected: int
) -> None:
    kora = KoRA(PaperForm(2, inject=False), None, readout=readout())
    task = ClassificationTask(tiny("tiny_vit"), kora, num_classes=classes)
    task.build()
    assert kora.d_comp == expected
    assert describe(kora)["init_args"]["d_comp"] == expected, "a file of it names the number"
