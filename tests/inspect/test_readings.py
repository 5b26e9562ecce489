"""Claims about reading out a loaded model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kora.adapters import (
    FactoredMatrix,
    FullFineTune,
    Injection,
    KoRA,
    LinearProbe,
    NodeMatrix,
    PaperForm,
    PlainMatrix,
    RefinedForm,
    Strategy,
    TokenReadout,
)
from kora.analysis.quantity import Quantity, Spectrum
from kora.backbone.vit import Backbone
from kora.heads import LinearDepth
from kora.inspect.command import _redundancy, _summed_up
from kora.inspect.readings import (
    gradient_quantities,
    measured_gradients,
    needs_images,
    read_out,
    require_readable,
)
from kora.tasks import ClassificationTask, DepthTask
from kora.tasks.load import load_adapter
from tests.support.adapter_factory import write_folder
from tests.support.factory import kick
from tests.support.strategies import STRATEGIES

NOTHING = {"LinearProbe", "MultiLayerProbe", "FullFineTune"}


def depth_folder(folder: Path) -> Path:
    """The adapter folder of a token-wise composition under a depth head."""
    torch.manual_seed(2)
    backbone = Backbone("vit_nano", image_size=32)
    adapter = KoRA(PaperForm(2, pool="tokens", blocks=[4, 5]), 4, readout=TokenReadout("default"))
    task = DepthTask(backbone, adapter, head=LinearDepth())
    task.build()
    return write_folder(folder, kick(task))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_read_outs_or_is_named_as_having_none(name: str) -> None:
    strategy = STRATEGIES[name]()
    if name in NOTHING:
        with pytest.raises(ValueError, match="nothing to read out of"):
            require_readable(strategy)
    else:
        require_readable(strategy)


def test_what_reads_weights_alone_needs_no_images() -> None:
    needing = {name for name, entry in STRATEGIES.items() if needs_images(entry())}
    without = {"LoRA", "DoRA", "SSF", "BitFit", *NOTHING}
    assert needing == set(STRATEGIES) - without


@pytest.mark.parametrize("strategy", [LinearProbe(), FullFineTune()])
def test_the_refusal_says_what_can_be_read(strategy: Strategy) -> None:
    with pytest.raises(ValueError, match="kora inspect reads runs of: KoRA, LoRA"):
        require_readable(strategy)


def test_a_composition_of_tokens_is_read_and_its_gradient_measured(tmp_path: Path) -> None:
    model = load_adapter(depth_folder(tmp_path / "adapter"))
    adapter = model.adapter
    assert isinstance(adapter, KoRA)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    read = read_out(model, lambda: iter([images]))
    contribution = read.quantities[0].values
    assert list(contribution)[-1] == ("5", "fc2")
    assert contribution["5", "fc2"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradient, composed = measured_gradients(
        model, adapter, {"image": images, "depth_m": torch.full((2, 32, 32), 3.0)}
    )
    assert composed > 0
    assert gradient.values["5", "fc2"]
    assert adapter.observer is None
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def read_by_name(adapter: KoRA, folder: Path) -> dict[str, Quantity | Spectrum]:
    """What is read out of it on `vit_nano`, away from its start, after a file."""
    task = ClassificationTask(Backbone("vit_nano", image_size=32), adapter, num_classes=3)
    task.build()
    model = load_adapter(write_folder(folder / "adapter", kick(task), class_names=["a", "b", "c"]))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    return {one.name: one for one in read_out(model, lambda: iter([images])).quantities}


def test_updates_are_read_where_there_is_no_node_as_well(tmp_path: Path) -> None:
    torch.manual_seed(2)
    inject = Injection(2, sites=["qkv", "proj"])
    adapter = KoRA(RefinedForm(sites=["proj"], blocks=[-1], inject=inject), 4)
    read = read_by_name(adapter, tmp_path)
    assert list(read["contribution"].values) == [("5", "proj")]
    assert len(read["update_norm"].values) == 12
    assert set(read["update_norm"].values) == set(read["update_share"].values)
    assert all(read["update_norm"].values.values())


@pytest.mark.parametrize(("kind", "matrix"), [(PlainMatrix, "M"), (FactoredMatrix, "P B A")])
def test_singular_values_say_of_which_matrix(
    tmp_path: Path, kind: type[NodeMatrix], matrix: str
) -> None:
    adapter = KoRA(RefinedForm(kind(), sites=["proj"]), 3)
    spectrum = read_by_name(adapter, tmp_path)["singular_value"]
    assert spectrum.title == f"singular values of {matrix}"
    first = adapter.nodes["b00_proj"].matrix()[0].double()
    values = torch.linalg.svdvals(first)[:3]
    assert spectrum.values["0", "proj"] == pytest.approx(values.tolist(), rel=1e-4)


def test_what_was_not_finite_is_none_and_the_newest_step_is_the_last(tmp_path: Path) -> None:
    adapter = load_adapter(depth_folder(tmp_path / "adapter")).adapter
    assert isinstance(adapter, KoRA)
    norms = dict.fromkeys(adapter.nodes, 0.5) | {"b05_fc2": None}
    readings = [
        {"step": step, "images": 4, "composed": 1.0, "nodes": norms} for step in (1, 2, 100, 300)
    ]
    found, scalars = gradient_quantities(adapter, readings)
    names = ["gradient_step_1", "gradient_step_2", "gradient_step_100", "gradient_last"]
    assert [one.name for one in found] == names
    assert list(scalars) == [f"{name}_composed" for name in names]
    _, scalars = gradient_quantities(adapter, [one | {"redundancy": 0.25} for one in readings])
    assert [scalars[f"{name}_redundancy"] for name in names] == [0.25] * 4
    assert found[-1].title == "gradient at p, step 300 (last)"
    assert found[-1].values["5", "fc2"] is None
    assert len({one.family for one in found if hasattr(one, "family")}) == 1


def test_a_line_says_how_much_takes_part() -> None:
    assert "1 of 3 nodes have less than a millionth of it, 1 of them exactly 0" in _summed_up(
        [0.0, 0.5, 1.0]
    )
    assert _summed_up([0.0, 0.0]).startswith("0 at every node")
    assert _summed_up([None]) == "not finite at any node."


def test_a_line_says_how_redundant_the_nodes_were_and_are() -> None:
    scalars: dict[str, float | None] = {
        "composed_norm": 2.0,
        "redundancy": 0.551,
        "gradient_step_1_composed": 3.0,
        "gradient_step_1_redundancy": 0.0,
        "gradient_step_100_redundancy": 0.25,
        "gradient_last_redundancy": 0.5,
    }
    assert _redundancy(scalars) == (
        "redundancy, mean |cos(p_i, p_j)|: 0.55 on the images; "
        "in training 0.00 at step 1, 0.25 at step 100, 0.50 at the last step that was read."
    )
    alone = _redundancy({"redundancy": 1.0})
    assert alone == "redundancy, mean |cos(p_i, p_j)|: 1.00 on the images."
