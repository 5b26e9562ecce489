"""Claims about the nodes of a refined KoRA; references are written token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kora.adapters import (
    FactoredMatrix,
    Injection,
    KoRA,
    LogitReadout,
    LoRA,
    NodeForm,
    NodeMatrix,
    PaperForm,
    PlainMatrix,
    RefinedForm,
    RefinedNode,
    SharedMatrix,
    Sum,
)
from kora.adapters.graph.nodes import token_mean
from tests.support.factory import built, kick, nano
from tests.support.families import tiny


def refined(matrix: NodeMatrix | None = None, **options: Any) -> KoRA:
    """A side network on `tiny_vit`, away from its start, in eval mode."""
    strategy = KoRA(RefinedForm(matrix, **options), 3, composer=Sum())
    task = kick(built(strategy, backbone=tiny("tiny_vit")), scale=0.3).eval()
    strategy = task.adapter
    assert isinstance(strategy, KoRA)
    strategy.task = (task,)
    return strategy


def nodes_of(strategy: KoRA) -> dict[str, RefinedNode]:
    return {k: node for k, node in strategy.nodes.items() if isinstance(node, RefinedNode)}


def sent_and_read(strategy: KoRA, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """p of every node, and the tokens (B, N, I) that its site was given, by key."""
    sent: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    backbone = strategy.task[0].backbone
    places = {"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    for key in strategy.nodes:
        block, _, name = key.partition("_")
        layer = backbone.model.blocks[int(block[1:])].get_submodule(places[name])

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], key: str = key) -> None:
            read[key] = inputs[0].detach()

        layer.register_forward_pre_hook(keep)
    strategy.observer = lambda vectors, _: sent.update(zip(strategy.nodes, vectors, strict=True))
    strategy(backbone, images)
    return sent, read


def normed(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()


def test_a_node_reads_the_normed_mean_and_cls_through_a_matrix_each(images: Tensor) -> None:
    strategy = refined(pool="both")
    sent, read = sent_and_read(strategy, images)
    for key, node in nodes_of(strategy).items():
        mean, cls = node.matrix_SCI
        tokens = read[key]
        expected = normed(tokens.mean(1)) @ mean.T + normed(tokens[:, 0]) @ cls.T
        torch.testing.assert_close(sent[key], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_mean_over_tokens_sums_exactly_and_has_the_gradient_of_a_mean(
    dtype: torch.dtype,
) -> None:
    tokens = (torch.randn(3, 197, 12) + 1).to(dtype).requires_grad_()
    exact = tokens.double().mean(1)
    once_rounded = torch.finfo(dtype).eps
    torch.testing.assert_close(token_mean(tokens).double(), exact, rtol=once_rounded, atol=1e-6)
    token_mean(tokens).sum().backward()
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad, torch.full_like(tokens, 1 / 197))


def test_factors_are_p_b_a_on_the_same_input(images: Tensor) -> None:
    strategy = refined(FactoredMatrix(2), pool="cls")
    sent, read = sent_and_read(strategy, images)
    for key, node in nodes_of(strategy).items():
        assert node.delta is not None
        matrix = node.project_SCO[0] @ node.delta.up_OR @ node.delta.down_RI
        expected = normed(read[key][:, 0]) @ matrix.T
        torch.testing.assert_close(sent[key], expected, rtol=1e-4, atol=1e-5)


def test_without_norm_and_on_means_factors_are_the_paper_s_nodes(images: Tensor) -> None:
    plain = KoRA(PaperForm(2, inject=False), 3)
    same = KoRA(RefinedForm(FactoredMatrix(2), norm=False), 3)
    tasks = [kick(built(one, backbone=tiny("tiny_vit"))) for one in (plain, same)]
    for key, node in plain.nodes.items():
        other = same.nodes[key]
        other.delta.load_state_dict(node.delta.state_dict())
        with torch.no_grad():
            other.project_SCO[0].copy_(node.project_CO)
    same.composer.load_state_dict(plain.composer.state_dict())
    same.readout.load_state_dict(plain.readout.state_dict())
    tasks[1].head.load_state_dict(tasks[0].head.state_dict())
    torch.testing.assert_close(tasks[1](images), tasks[0](images), rtol=1e-5, atol=1e-5)


def test_attention_begins_as_the_mean_and_then_weighs_the_tokens(images: Tensor) -> None:
    strategy = refined(pool="attention", sites=["proj"])
    for node in nodes_of(strategy).values():
        nn.init.zeros_(node.query_I)
    sent, read = sent_and_read(strategy, images)
    for key, node in nodes_of(strategy).items():
        expected = normed(read[key]).mean(1) @ node.matrix_SCI[0].T
        torch.testing.assert_close(sent[key], expected, rtol=1e-4, atol=1e-5)
    for node in nodes_of(strategy).values():
        nn.init.normal_(node.query_I)
    sent, read = sent_and_read(strategy, images)
    for key, node in nodes_of(strategy).items():
        x = normed(read[key])
        weights = torch.softmax(x @ node.query_I / x.shape[-1] ** 0.5, dim=1)
        expected = (weights[..., None] * x).sum(1) @ node.matrix_SCI[0].T
        torch.testing.assert_close(sent[key], expected, rtol=1e-4, atol=1e-5)


def test_a_shared_matrix_is_one_for_a_site_of_all_blocks_with_a_scale_each() -> None:
    task = built(
        KoRA(RefinedForm(SharedMatrix(), sites=["qkv", "fc2"]), 4),
        backbone=nano(),
    )
    strategy = task.adapter
    named = dict(strategy.named_parameters())
    matrices = {name: p for name, p in named.items() if "matrices" in name}
    assert {name: tuple(p.shape) for name, p in matrices.items()} == {
        "node_form.matrices.qkv": (1, 4, 128),
        "node_form.matrices.fc2": (1, 4, 512),
    }
    scales = [p for name, p in named.items() if name.endswith("scale")]
    assert len(scales) == 12
    assert all(p.numel() == 1 for p in scales)
    assert not any("matrix" in name for name in named)


def test_a_shared_matrix_is_sent_times_the_scale_of_the_block(images: Tensor) -> None:
    strategy = refined(SharedMatrix(), sites=["proj", "fc2"])
    for i, node in enumerate(nodes_of(strategy).values()):
        nn.init.constant_(node.scale, i + 2.0)
    sent, read = sent_and_read(strategy, images)
    assert isinstance(strategy.node_form, RefinedForm)
    for i, key in enumerate(strategy.nodes):
        matrix = strategy.node_form.matrices[key.partition("_")[2]][0]
        expected = (i + 2) * normed(read[key].mean(1)) @ matrix.T
        torch.testing.assert_close(sent[key], expected, rtol=1e-4, atol=1e-5)


def test_any_one_matrix_is_some_p_b_a_where_d_comp_is_no_more_than_the_rank() -> None:
    one = refined(sites=["proj"])
    task = built(
        KoRA(RefinedForm(FactoredMatrix(3), sites=["proj"]), 3, composer=Sum()),
        backbone=tiny("tiny_vit"),
    )
    for key, node in task.adapter.nodes.items():
        matrix = one.nodes[key].matrix()
        nn.init.eye_(node.project_SCO[0])
        nn.init.eye_(node.delta.up_OR)
        with torch.no_grad():
            node.delta.down_RI.copy_(matrix[0])
        torch.testing.assert_close(node.matrix(), matrix)


def test_one_matrix_has_seven_numbers_where_factors_have_twenty_five() -> None:
    """Four sites of width 1, 1, 1, 4 in and 3, 1, 4, 1 out, in D; rank and d_comp 8."""

    def numbers(node_form: NodeForm, d_comp: int = 8) -> int:
        task = built(KoRA(node_form, d_comp), backbone=nano())
        nodes = task.adapter.nodes
        assert isinstance(nodes, nn.ModuleDict)
        return sum(p.numel() for p in nodes.parameters())

    paper = PaperForm(8, inject=False)
    assert numbers(RefinedForm()) == 6 * 7 * 8 * 128
    assert numbers(RefinedForm(FactoredMatrix(8))) == numbers(paper) == 6 * 25 * 8 * 128
    assert numbers(RefinedForm(), d_comp=4) == 6 * 7 * 4 * 128  # about a sixth of
    assert numbers(paper, d_comp=4) == 6 * (16 * 8 + 9 * 4) * 128


@pytest.mark.parametrize("pool", ["mean", "both", "attention", "tokens"])
def test_what_a_node_reads_is_dropped_in_training_and_its_expectation_stays(pool: Any) -> None:
    torch.manual_seed(0)
    strategy = refined(dropout=0.5, sites=["proj"], pool=pool)
    node = next(iter(nodes_of(strategy).values()))
    kept = torch.randn({"mean": (1, 32), "both": (1, 64)}.get(pool, (1, 5, 32)))
    whole = node.vector(kept)
    node.train()
    draws = torch.stack([node.vector(kept) for _ in range(4000)])
    assert draws.std(dim=0).min() > 0.1 * whole.abs().max()
    error = draws.std(dim=0) / len(draws) ** 0.5
    assert ((draws.mean(dim=0) - whole).abs() < 5 * error).all()


def test_dropout_of_what_is_injected_does_not_touch_what_refined_nodes_send() -> None:
    inject = Injection(2, sites=["proj"], dropout=0.5)
    strategy = refined(FactoredMatrix(), sites=["proj"], inject=inject)
    node = next(iter(nodes_of(strategy).values())).train()
    kept = torch.randn(3, 32)
    torch.testing.assert_close(node.vector(kept), node.vector(kept), rtol=0, atol=0)


def test_dropped_nodes_say_nothing_for_an_image_and_the_expectation_stays(images: Tensor) -> None:
    strategy = refined(node_dropout=0.5, sites=["proj"])
    node = next(iter(nodes_of(strategy).values()))
    kept = torch.randn(4000, 32)
    whole = node.vector(kept)
    node.train()
    dropped = node.vector(kept)
    silent = (dropped == 0).all(dim=1)
    assert 0.45 < silent.float().mean() < 0.55
    torch.testing.assert_close(dropped[~silent], 2 * whole[~silent])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: RefinedForm(node_dropout=1.0),
            "node_dropout=1.0, expected a probability in",
        ),
        (lambda: RefinedForm(pool="max"), "pool='max', expected one of mean, cls, both"),
        (lambda: PaperForm(pool="both"), "pool='both', expected one of mean, cls, tokens"),
        (lambda: PlainMatrix("zeros"), "expected one of default, zero"),
        (lambda: SharedMatrix("zeros"), "SharedMatrix: init='zeros'"),
        (lambda: FactoredMatrix(0), "rank=0, expected 1 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize("kind", [PlainMatrix, SharedMatrix])
def test_nodes_say_nothing_at_the_start_where_that_is_asked(kind: type[PlainMatrix]) -> None:
    strategy = KoRA(
        RefinedForm(kind("zero")), 3, composer=Sum(), readout=LogitReadout("orthogonal")
    )
    built(strategy, backbone=tiny("tiny_vit"))
    nodes = nodes_of(strategy).values()
    assert len(nodes) == 8
    assert not any(node.matrix().any() for node in nodes)


def test_a_pool_of_both_needs_a_cls_token() -> None:
    with pytest.raises(ValueError, match="reads the CLS token"):
        built(KoRA(RefinedForm(pool="both", sites=["fc1"]), 2), backbone=tiny("tiny_siglip"))


def test_factors_share_what_is_injected_at_their_site(images: Tensor) -> None:
    inject = Injection(3, sites=["proj"])
    strategy = refined(FactoredMatrix(2), sites=["proj", "fc1"], inject=inject)
    for key, node in nodes_of(strategy).items():
        assert node.delta is not None
        assert len(node.delta.down_RI) == (3 if key.endswith("proj") else 2)
    assert {key.partition("_")[2] for key in strategy.parts()} == {"proj"}
    assert dict(strategy.named_parameters()).keys() >= {"nodes.b00_proj.delta.down_RI"}


def test_an_injected_node_adds_its_low_rank_update_and_sends_another(images: Tensor) -> None:
    """With M zero it is LoRA: what it sends and what it adds have no weights in common."""
    strategy = KoRA(RefinedForm(inject=Injection(2)), 3, composer=Sum())
    task = kick(built(strategy, backbone=tiny("tiny_vit")))
    lora = built(LoRA(2), backbone=tiny("tiny_vit"))
    for key, node in task.adapter.nodes.items():
        lora.adapter.deltas[key].load_state_dict(node.delta.state_dict())
        nn.init.zeros_(node.matrix_SCI)
    nn.init.zeros_(task.adapter.readout.bias_D)
    lora.head.load_state_dict(task.head.state_dict())
    torch.testing.assert_close(task(images), lora(images), rtol=1e-5, atol=1e-5)
