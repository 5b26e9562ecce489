"""Claims about what trains, where and how much; and what a training step costs.

Reference counts: the published notebook's models, counted layer by layer (KoRA paper, table 1).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from benchmarks.contenders import shared
from kora.adaptation.candidates import CACHED, THROUGH
from kora.adapters import (
    SSF,
    VPT,
    AdapterFusion,
    BitFit,
    Bottleneck,
    ClsReadout,
    DoRA,
    FullFineTune,
    KoRA,
    LinearProbe,
    LoRA,
    LowRankFusion,
    PaperForm,
    Strategy,
    TokenReadout,
)
from kora.backbone.vit import Backbone
from kora.reports.parameters import ParameterReport, parameter_report
from tests.support.counted import counted_step, without_numbers
from tests.support.factory import built
from tests.support.fusion_factory import write_source

SITES = ["qkv", "proj", "fc1", "fc2"]


@pytest.fixture(scope="module")
def vit_b() -> Backbone:
    """ViT-B/16 at 224 px with timm's classifier of 1000 classes, as the published notebook has."""
    with torch.device("meta"):
        return Backbone("vit_base_patch16_224", weights="random", keep_classifier=True)


def counted(backbone: Backbone, adapter: Strategy, num_classes: int = 100) -> ParameterReport:
    with torch.device("meta"):
        return parameter_report(built(adapter, backbone=shared(backbone), num_classes=num_classes))


def kora(d_comp: int, *, faithful: bool = False) -> KoRA:
    readout = ClsReadout() if faithful else ClsReadout("default", trainable=False)
    return KoRA(PaperForm(8, inject=False), d_comp, readout=readout)


@pytest.mark.parametrize(
    ("make", "trainable", "total", "percent"),
    [
        (
            lambda: LoRA(8, sites=[*SITES, "head"], allow_dead_sites=True),
            1_270_692,
            87_838_348,
            1.447,
        ),
        (lambda: kora(4), 1_590_224, 88_157_880, 1.804),
        (lambda: kora(8), 1_926_940, 88_494_596, 2.177),
        (lambda: kora(4, faithful=True), 1_590_224 + 4 * 768 + 768, None, None),
        (lambda: kora(8, faithful=True), 1_926_940 + 8 * 768 + 768, None, None),
    ],
    ids=["lora_with_head", "kora_4", "kora_8", "kora_4_faithful", "kora_8_faithful"],
)
def test_the_published_counts_come_out_exactly(
    make: Callable[[], Strategy],
    trainable: int,
    total: int | None,
    percent: float | None,
    vit_b: Backbone,
) -> None:
    report = counted(vit_b, make())
    assert report.trainable == trainable
    if total is not None:
        assert (report.total, report.percent) == (total, percent)
        assert report.to_dict()["trainable"] == trainable


def test_lora_without_unused_parts_is_counted_exactly() -> None:
    with torch.device("meta"):
        backbone = Backbone("vit_base_patch16_224", weights="random")
    report = counted(backbone, LoRA(8))
    assert (report.trainable, report.total, report.percent) == (1_256_548, 87_055_204, 1.443)
    assert report.head == 76_900


def test_injection_costs_no_parameter(vit_b: Backbone) -> None:
    assert (
        counted(vit_b, KoRA(PaperForm(8), 8)).trainable
        == counted(vit_b, KoRA(PaperForm(8, inject=False), 8)).trainable
    )


@pytest.mark.parametrize(
    "make",
    [
        LinearProbe,
        FullFineTune,
        LoRA,
        KoRA,
        lambda: LoRA(sites=["q", "v"], blocks=[1]),
    ],
)
def test_the_cells_of_the_table_add_up_to_what_trains(make: Callable[[], Strategy]) -> None:
    task = built(make())
    report = parameter_report(task)
    assert sum(report.cells.values()) == report.trainable
    assert report.trainable == sum(p.numel() for p in task.parameters() if p.requires_grad)
    assert report.cells["–", "head"] == report.head == 128 * 7 + 7
    console = Console(width=200)
    with console.capture() as capture:
        console.print(report.render())
    text = capture.get()
    assert f"{report.trainable:,} of {report.total:,} parameters train" in text
    for count in report.cells.values():
        assert f"{count:,}" in text


def test_the_cells_name_block_and_site() -> None:
    report = parameter_report(built(KoRA(PaperForm(2, sites=["v", "fc1"], blocks=[0, 3]), 4)))
    assert report.cells == {
        ("0", "v"): 2 * 128 + 128 * 2 + 4 * 128,
        ("0", "fc1"): 2 * 128 + 512 * 2 + 4 * 512,
        ("3", "v"): 2 * 128 + 128 * 2 + 4 * 128,
        ("3", "fc1"): 2 * 128 + 512 * 2 + 4 * 512,
        ("–", "composer"): 7 * (4 * 4 + 4),
        ("–", "readout"): 4 * 128 + 128,
        ("–", "head"): 128 * 7 + 7,
    }


# -- cost of one training step on ViT-B/16, 224 px, batch 4 ---------------------------------------


@pytest.fixture(scope="module")
def real_vit_b() -> Backbone:
    torch.manual_seed(0)
    return Backbone("vit_base_patch16_224", weights="random")


def dense(*, inject: bool) -> KoRA:
    return KoRA(PaperForm(8, inject=inject, pool="tokens"), 8, readout=TokenReadout())


def preset(name: str) -> Callable[[], Strategy]:
    return next(one.strategy for one in (*CACHED, *THROUGH) if one.name == name)


def cost(backbone: Backbone, adapter: Strategy) -> tuple[float, float]:
    """GFLOP and MiB of a step, see `counted_step`."""
    task = built(adapter, backbone=shared(backbone), num_classes=100).train()
    with without_numbers(task):
        images = torch.zeros(4, 3, 224, 224, dtype=torch.uint8)
        return counted_step(task, lambda: F.cross_entropy(task(images), torch.arange(4)))


@pytest.mark.parametrize(
    ("make", "least_gflop", "most_gflop", "most_mib"),
    [
        # The whole frozen forward is 134.8 GFLOP. Where nothing reads the patch tokens behind the
        # last attention, 8.3 of them are left out, and in backward as many.
        (LinearProbe, 126, 127, 0.1),
        (lambda: KoRA(PaperForm(8, inject=False), 8), 134, 136, 10),
        (lambda: KoRA(PaperForm(8, inject=False, pool="cls"), 8), 126, 127, 10),
        # peft's LoRA: 271.4 GFLOP and 447.3 MiB (torch's counter, the same hooks); forward and
        # backward through the frozen backbone alone: 269.6 GFLOP and 284.5 MiB.
        (LoRA, 254, 255, 0.61 * 447.3),
        (lambda: LoRA(sites=["q", "v"]), 250, 251, 0.61 * 447.3),
        (lambda: KoRA(PaperForm(8, inject=True), 8), 269.6, 271.8, 0.64 * 447.3),
        (lambda: dense(inject=True), 269.6, 271.8, 290),
        (lambda: dense(inject=False), 134, 138, 210),
        (Bottleneck, 241, 242, 280),
        # The gradients of scales take products with the inputs, so that no second output is kept.
        (DoRA, 330, 331, 490),
        (SSF, 326, 327, 390),
        (BitFit, 251, 253, 280),
        (preset("MultiLayerProbe"), 134, 135, 0.3),
        (preset("KoRA-refined"), 134, 135, 0.3),
        (preset("KoRA-over-LoRA"), 268, 269, 282),
        (VPT, 264, 265, 290),
        (FullFineTune, 378, 379, 440),
    ],
    ids=[
        "LinearProbe",
        "KoRA-side",
        "KoRA-side-cls",
        "LoRA",
        "LoRA-q-v",
        "KoRA",
        "KoRA-tokens",
        "KoRA-side-tokens",
        "Bottleneck",
        "DoRA",
        "SSF",
        "BitFit",
        "MultiLayerProbe",
        "KoRA-refined",
        "KoRA-over-LoRA",
        "VPT",
        "FullFineTune",
    ],
)
def test_a_training_step_costs_no_more_than(
    make: Callable[[], Strategy],
    least_gflop: float,
    most_gflop: float,
    most_mib: float,
    real_vit_b: Backbone,
) -> None:
    gflop, mib = cost(real_vit_b, make())
    assert least_gflop <= gflop <= most_gflop
    assert mib <= most_mib


@pytest.mark.parametrize(
    ("kind", "most_gflop", "most_mib"), [(AdapterFusion, 363, 450), (LowRankFusion, 265, 420)]
)
def test_a_training_step_of_a_fusion_costs_no_more_than(
    kind: type[AdapterFusion],
    most_gflop: float,
    most_mib: float,
    real_vit_b: Backbone,
    tmp_path: Path,
) -> None:
    sources = [
        write_source(tmp_path / str(seed), Bottleneck(8), seed=seed, backbone=shared(real_vit_b))
        for seed in (1, 2)
    ]
    gflop, mib = cost(real_vit_b, kind(sources))
    assert 255 <= gflop <= most_gflop
    assert mib <= most_mib
