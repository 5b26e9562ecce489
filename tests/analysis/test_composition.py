"""Claims about what each node contributes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kora.adapters import ClsReadout, KoRA, PaperForm, TokenReadout
from kora.adapters.kora import Node
from kora.analysis.composition import Contributions, projection_spectrum
from tests.support.factory import built, kick
from tests.support.strategies import LastNode


def composed(adapter: KoRA, images: Tensor) -> tuple[KoRA, Contributions, list[Tensor]]:
    """The adapter, what was gathered of two batches, and the vectors of both together."""
    task = kick(built(adapter), scale=0.3).eval()
    gathered, seen = Contributions(adapter), []

    def observe(vectors: list[Tensor], whole: Tensor) -> None:
        gathered.observe(vectors, whole)
        seen.append([vector.detach() for vector in vectors])

    adapter.observer = observe
    task.features(images[:2])
    task.features(images[2:])
    return adapter, gathered, [torch.cat(pair) for pair in zip(*seen, strict=True)]


@pytest.mark.parametrize("inject", [True, False])
def test_a_contribution_is_what_is_missing_of_c_without_the_node(
    inject: bool, images: Tensor
) -> None:
    adapter, gathered, vectors = composed(KoRA(PaperForm(2, inject=inject), 4), images)
    shares = list(gathered.shares().values())
    compose = adapter.composer.double()
    vectors = [vector.double() for vector in vectors]
    whole = compose(vectors)
    for i in (0, 20, 23):
        without = [*vectors[:i], 0 * vectors[i], *vectors[i + 1 :]]
        change = (whole - compose(without)).norm(dim=1).sum() / whole.norm(dim=1).sum()
        assert shares[i] == pytest.approx(float(change), rel=1e-9, abs=1e-15)
    norms = gathered.vector_norms()
    assert list(norms) == list(gathered.shares()) == list(adapter.nodes)
    assert norms["b00_qkv"] == pytest.approx(float(vectors[0].norm(dim=1).mean()))
    assert gathered.composed_norm == pytest.approx(float(whole.norm(dim=1).mean()))
    assert gathered.images == len(images)


def test_only_the_end_of_the_published_chain_contributes(images: Tensor) -> None:
    """The forgetting chain, seen from the other end: early nodes move c by nothing at all."""
    _, gathered, _ = composed(KoRA(PaperForm(8), 8), images)
    shares = list(gathered.shares().values())
    assert shares[-1] > 0.01
    assert max(shares[:8]) < 1e-6 * shares[-1]


def test_where_only_the_last_node_is_composed_it_contributes_all(images: Tensor) -> None:
    _, gathered, _ = composed(KoRA(PaperForm(2), 4, composer=LastNode()), images)
    shares = list(gathered.shares().values())
    assert shares[-1] == 1
    assert set(shares[:-1]) == {0}


def test_tokens_of_an_image_count_together(images: Tensor) -> None:
    adapter = KoRA(PaperForm(2, pool="tokens", blocks=[4, 5]), 4, readout=TokenReadout("default"))
    _, gathered, vectors = composed(adapter, images)
    assert vectors[0].ndim == 3
    expected = float(vectors[-1].double().flatten(1).norm(dim=1).mean())
    assert gathered.vector_norms()["b05_fc2"] == pytest.approx(expected)


def test_an_adapter_at_its_start_contributes_nothing(images: Tensor) -> None:
    adapter = KoRA(PaperForm(2), 4, readout=ClsReadout("default"))
    task, gathered = built(adapter).eval(), Contributions(adapter)
    adapter.observer = gathered.observe
    task.features(images)
    assert set(gathered.shares().values()) == {0}
    assert set(gathered.vector_norms().values()) == {0}


def test_the_spectrum_is_that_of_p_b_a() -> None:
    adapter = KoRA(PaperForm(3, blocks=[0]), 5)
    kick(built(adapter))
    for node in adapter.nodes.values():
        assert isinstance(node, Node)
        whole = node.project_CO @ node.delta.up_OR @ node.delta.down_RI
        expected = torch.linalg.svdvals(whole.double())[:3]
        torch.testing.assert_close(
            torch.tensor(projection_spectrum(node), dtype=torch.float64),
            expected, rtol=1e-4, atol=1e-7,
        )  # fmt: skip
