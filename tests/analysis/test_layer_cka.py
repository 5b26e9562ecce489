"""Claims about the comparisons of layers: which there are, and what is said of them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from kora.analysis.cka import biased_cka
from kora.analysis.layer_cka import LayerCKA, Model, compare_layers

Array = NDArray[np.float64]
LAYERS = ("embedding", "block 0", "final")


def model(key: str, frozen: str, layers: Sequence[str] = LAYERS) -> Model:
    return Model(key, key.upper(), tuple(layers), frozen, {"folder": key})


RUN, RUN2, FROZEN = (model(*pair) for pair in (("run", "f"), ("run2", "f"), ("f", "f")))


def layers(rng: np.random.Generator, number: int = 3) -> list[Array]:
    return [rng.standard_normal((8, 5)) for _ in range(number)]


def compared(*changed: int, batches: int = 12) -> LayerCKA:
    """A run whose layers of these numbers differ from the frozen backbone's."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(batches):
        frozen = layers(rng)
        run = [x + rng.standard_normal(x.shape) * (i in changed) for i, x in enumerate(frozen)]
        made.append([run, frozen])
    return compare_layers([RUN, FROZEN], made)


def test_two_runs_give_every_comparison_and_its_matrix_has_rows_of_the_first() -> None:
    rng = np.random.default_rng(1)
    made = [[layers(rng) for _ in range(3)] for _ in range(5)]
    found = compare_layers([RUN, RUN2, FROZEN], made)
    names = ["within_run", "within_run2", "within_f", "run_vs_f", "run2_vs_f", "run_vs_run2"]
    assert [c.name for c in found.comparisons] == names
    alone = compare_layers([RUN, FROZEN], [batch[::2] for batch in made])
    np.testing.assert_allclose(found["run_vs_f"].cka, alone["run_vs_f"].cka)
    swapped = compare_layers([RUN2, RUN, FROZEN], [[b[1], b[0], b[2]] for b in made])
    np.testing.assert_allclose(found["run_vs_run2"].cka, swapped["run2_vs_run"].cka.T)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ((2,), "changes no block output, as a side network does"),
        ((), "changes no layer, not even the final feature"),
        ((1, 2), ""),
        ((1,), ""),
    ],
)
def test_what_an_adapter_leaves_as_it_is_is_said(changed: tuple[int, ...], said: str) -> None:
    found = compared(*changed)
    same = [name for i, name in enumerate(LAYERS) if i not in changed]
    assert found.unchanged == {"run": tuple(same)}
    assert [said in remark for remark in found.remarks()] == [True] * bool(said)


@pytest.mark.parametrize(
    ("batches", "said"), [(1, "one minibatch"), (5, "rest on 5 minibatches"), (10, None)]
)
def test_few_batches_are_said(batches: int, said: str | None) -> None:
    remarks = " ".join(compared(1, batches=batches).remarks())
    assert ("minibatch" in remarks) == (said is not None)
    assert said is None or said in remarks


def test_models_of_other_depths_have_a_matrix_and_no_diagonal() -> None:
    rng = np.random.default_rng(1)
    deep = model("run2", "g", ("embedding", "block 0", "block 1", "final"))
    frozen = [FROZEN, model("g", "g", deep.layers)]
    made = [[layers(rng), layers(rng, 4), layers(rng), layers(rng, 4)] for _ in range(11)]
    found = compare_layers([RUN, deep, *frozen], made)
    between = found["run_vs_run2"]
    assert between.cka.shape == (3, 4)
    assert between.low is None
    assert any("their layers differ, so there is no diagonal" in text for text in found.remarks())
    assert found.to_dict()["comparisons"]["run_vs_run2"]["diagonal_high"] is None


def test_the_csv_has_a_row_a_pair_and_intervals_on_the_diagonal() -> None:
    found = compared(1, 2)
    rows = list(csv.DictReader(io.StringIO(found.to_csv())))
    assert len(rows) == 3 * 9
    against = [row for row in rows if row["comparison"] == "run_vs_f"]
    with_interval = [(r["layer"], r["other_layer"]) for r in against if r["low"]]
    assert with_interval == [(name, name) for name in LAYERS]
    for row in against:
        place = LAYERS.index(row["layer"]), LAYERS.index(row["other_layer"])
        assert float(row["cka"]) == found["run_vs_f"].cka[place]
    assert {(row["model"], row["other_model"]) for row in against} == {("RUN", "F")}


def test_a_layer_that_is_the_same_for_all_images_is_null_and_said() -> None:
    rng = np.random.default_rng(2)
    made = [[[np.ones((8, 5)), *layers(rng, 2)] for _ in range(2)] for _ in range(10)]
    found = compare_layers([RUN, FROZEN], made)
    assert found.to_dict()["comparisons"]["within_run"]["cka"][0] == [None] * 3
    assert any("same for every image" in text for text in found.remarks())
    assert "nan" not in found.to_csv()


def test_beside_the_unbiased_value_stands_the_biased_one_of_the_first_32_images() -> None:
    rng = np.random.default_rng(2)
    made = [[layers(rng), layers(rng)] for _ in range(6)]  # 8 images each
    found = compare_layers([RUN, FROZEN], made)["run_vs_f"]
    assert found.biased is not None
    first, second = (
        np.concatenate([batch[model][layer] for batch in made[:4]])
        for model, layer in ((0, 1), (1, 2))
    )
    assert found.biased[1, 2] == pytest.approx(biased_cka(first, second), rel=1e-9)
    assert found.to_dict()["biased_cka_of_32_images"][1][2] == found.biased[1, 2]
    few = compare_layers([RUN, FROZEN], made[:3])["run_vs_f"]
    assert few.biased is None
    assert few.to_dict()["biased_cka_of_32_images"] is None
