"""Claims about the arguments of every strategy: each has an effect, and the size is one of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import kora.adapters
from kora.adapters import (
    ClsReadout,
    Composer,
    FactoredMatrix,
    Feedback,
    Injection,
    KoRA,
    LogitReadout,
    LoRA,
    NodeForm,
    NodeMatrix,
    PaperForm,
    PlainMatrix,
    Readout,
    RefinedForm,
    SharedMatrix,
    Strategy,
    Sum,
    TokenReadout,
    resized,
)
from kora.adapters.matching import count_trainable
from kora.backbone.vit import Backbone
from tests.support.adapters import gradients
from tests.support.factory import built, kick
from tests.support.families import tiny
from tests.support.strategies import STRATEGIES, Change, Entry


def arguments_of(kind: type) -> list[str]:
    parameters = inspect.signature(kind).parameters.values()
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


KINDS = {entry.kind: entry for entry in reversed(STRATEGIES.values())}
ARGUMENTS = [(kind, name) for kind in KINDS for name in arguments_of(kind)]


class Evidence(NamedTuple):
    """What a strategy trains and does; equal for two that do not differ."""

    shapes: dict[str, tuple[int, ...]]
    start: list[Tensor]
    logits: Tensor  # in training, away from the start
    gradients: dict[str, Tensor]


def evidence(strategy: Strategy, backbone: Backbone, images: Tensor) -> Evidence:
    task = built(strategy, backbone=backbone)
    kept = {name: tensor.detach().clone() for name, tensor in task.kept_tensors().items()}
    kick(task).train()
    torch.manual_seed(0)
    logits = task(images).detach()
    torch.manual_seed(0)
    _, found = gradients(task, images)
    shapes = {name: tuple(parameter.shape) for name, parameter in task.trainables().items()}
    return Evidence(shapes, list(kept.values()), logits, found)


def differ(one: Evidence, other: Evidence) -> bool:
    if one.shapes != other.shapes or one.gradients.keys() != other.gradients.keys():
        return True
    mine = [*one.start, one.logits, *one.gradients.values()]
    theirs = [*other.start, other.logits, *other.gradients.values()]
    pairs = zip(mine, theirs, strict=True)
    return any(a.shape != b.shape or not torch.allclose(a, b, atol=1e-6) for a, b in pairs)


def change_of(entry: Entry, argument: str) -> Change:
    changes = entry.changes()
    if argument not in changes:
        pytest.fail(
            f"{entry.kind.__name__}: no other value of '{argument}' is known. Add one to `changes` "
            "of its entry in tests/support/strategies.py."
        )
    value = changes[argument]
    return value if isinstance(value, Change) else Change(value)


@pytest.fixture(scope="module")
def usual() -> dict[tuple[type, str], Evidence]:
    """What was found of a class with its usual arguments, or with those beside an argument."""
    return {}


@pytest.mark.parametrize(("kind", "argument"), ARGUMENTS)
def test_every_argument_changes_something(
    kind: type[Strategy],
    argument: str,
    images: Tensor,
    usual: dict[tuple[type, str], Evidence],
) -> None:
    entry = next((e for e in STRATEGIES.values() if e.kind is kind and e.changes()), KINDS[kind])
    change = change_of(entry, argument)

    def found(**changed: Any) -> Evidence:
        fresh = change_of(entry, argument)  # modules among its values are attached once
        return evidence(entry(**{**fresh.given, **changed}), fresh.backbone(), images)

    changed = found(**{argument: change.value})
    if change.refused is None:
        base = usual_of((kind, argument if change.given else ""), found, usual)
        assert differ(base, changed)
    else:
        with pytest.raises(ValueError, match=change.refused):
            found()


def usual_of(
    key: tuple[type, str],
    find: Callable[[], Evidence],
    usual: dict[tuple[type, str], Evidence],
) -> Evidence:
    if key not in usual:
        usual[key] = find()
        assert not differ(usual[key], find()), "the comparison itself is not stable"
    return usual[key]


class Careless(LoRA):
    """LoRA with an argument that it forgets."""

    def __init__(self, rank: int = 2, *, gain: float = 1.0) -> None:
        super().__init__(rank, sites=["proj"])
        self.gain = gain


def test_an_argument_without_effect_would_be_found(images: Tensor) -> None:
    plain, forgotten, other = (
        evidence(strategy, tiny("tiny_vit"), images)
        for strategy in (Careless(), Careless(gain=3.0), Careless(3))
    )
    assert not differ(plain, forgotten)
    assert differ(plain, other)


@pytest.mark.parametrize("entry", [e for e in STRATEGIES.values() if e.changes is not dict])
def test_every_other_value_is_for_an_argument_that_exists(entry: Entry) -> None:
    assert set(entry.changes()) == set(arguments_of(entry.kind))


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_size_is_an_argument_by_which_it_grows(name: str) -> None:
    strategy, backbone = STRATEGIES[name](), tiny("tiny_vit")
    if strategy.size_argument is None:
        return
    size = attrgetter(strategy.size_argument)(strategy)
    assert strategy.size_argument.partition(".")[0] in arguments_of(type(strategy))
    counts = [count_trainable(resized(strategy, n), backbone) for n in (size, size + 1, size + 2)]
    assert counts == sorted(set(counts))
    assert counts[0] == count_trainable(strategy, backbone)


@pytest.mark.parametrize("name", STRATEGIES)
def test_it_can_be_counted_without_storage(name: str) -> None:
    strategy = STRATEGIES[name]()
    backbone = tiny("tiny_vit")
    trained = built(STRATEGIES[name](), backbone=tiny("tiny_vit")).adapter.trainable()
    assert count_trainable(strategy, backbone.to("meta")) == sum(p.numel() for _, p in trained)


def side(**part: Any) -> KoRA:
    """A refined side network of one node a block that no part of its start is silent in."""
    options = {"composer": Sum(), "readout": ClsReadout("default")}
    form = part.pop("node_form", None) or RefinedForm(sites=["proj"])
    return KoRA(form, 4, **{**options, **part})


def of_matrix(matrix: NodeMatrix) -> KoRA:
    return side(node_form=RefinedForm(matrix, sites=["proj"]))


class Part(NamedTuple):
    """An object that KoRA is composed of.

    Args:
        place: Makes a strategy with it.
        changes: For each argument another value, and what both sides have beside it.
        given: Arguments that it needs.
    """

    place: Callable[[Any], KoRA]
    changes: Mapping[str, tuple[Any, dict[str, Any]]]
    given: Mapping[str, Any] = {}


PARTS: dict[type, Part] = {
    PaperForm: Part(
        lambda form: KoRA(form, 4, readout=ClsReadout("default")),
        {
            "rank": (3, {}),
            "inject": (False, {}),
            "pool": ("cls", {}),
            "sites": (["v", "proj"], {}),
            "blocks": ([1], {}),
            "dropout": (0.5, {}),
            "spatial": (True, {"pool": "tokens"}),
        },
        {"sites": ["proj"]},
    ),
    RefinedForm: Part(
        lambda form: side(node_form=form),
        {
            "matrix": (SharedMatrix(), {}),
            "pool": ("cls", {}),
            "sites": (["fc1"], {}),
            "blocks": ([1], {}),
            "norm": (False, {}),
            "dropout": (0.5, {}),
            "node_dropout": (0.5, {}),
            "inject": (Injection(2), {}),
            "spatial": (True, {"pool": "tokens"}),
        },
        {"sites": ["proj"]},
    ),
    Injection: Part(
        lambda inject: side(node_form=RefinedForm(sites=["proj"], inject=inject)),
        {
            "rank": (3, {}),
            "sites": (["fc1"], {}),
            "blocks": ([1], {}),
            "dropout": (0.5, {}),
        },
        {"sites": ["proj"]},
    ),
    PlainMatrix: Part(of_matrix, {"init": ("zero", {})}),
    SharedMatrix: Part(of_matrix, {"init": ("zero", {})}),
    FactoredMatrix: Part(of_matrix, {"rank": (3, {})}),
    Feedback: Part(
        lambda feedback: side(feedback=feedback), {"from_block": (1, {})}, {"from_block": 0}
    ),
    ClsReadout: Part(
        lambda readout: side(readout=readout),
        {"init": ("default", {}), "trainable": (False, {"init": "default"})},
    ),
    LogitReadout: Part(lambda readout: side(readout=readout), {"init": ("orthogonal", {})}),
    TokenReadout: Part(
        lambda readout: side(node_form=RefinedForm(pool="tokens", sites=["proj"]), readout=readout),
        {"init": ("default", {})},
    ),
}


@pytest.mark.parametrize(
    ("kind", "argument"), [(kind, name) for kind in PARTS for name in arguments_of(kind)]
)
def test_every_argument_of_a_part_changes_something(
    kind: type, argument: str, images: Tensor, usual: dict[tuple[type, str], Evidence]
) -> None:
    part = PARTS[kind]
    if argument not in part.changes:
        pytest.fail(f"{kind.__name__}: no other value of '{argument}' is known. Add one to PARTS.")
    value, beside = part.changes[argument]

    def found(**changed: Any) -> Evidence:
        strategy = part.place(kind(**{**part.given, **beside, **changed}))
        return evidence(strategy, tiny("tiny_vit"), images)

    base = usual_of((kind, argument if beside else ""), found, usual)
    assert differ(base, found(**{argument: value}))


def test_every_part_that_has_arguments_is_held_against_it() -> None:
    kinds = [kind for kind in vars(kora.adapters).values() if inspect.isclass(kind)]
    parts = {
        kind
        for kind in kinds
        if issubclass(kind, Composer | Readout | NodeForm | NodeMatrix | Injection | Feedback)
        and not inspect.isabstract(kind)
        and arguments_of(kind)
    }
    assert parts == set(PARTS)
