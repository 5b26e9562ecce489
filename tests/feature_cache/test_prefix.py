"""Blocks before the first adapter are computed once, and what trains cannot tell the difference."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import nn

from kora.adapters import VPT, BitFit, DoRA, KoRA, LoRA, PaperForm, Strategy
from kora.backbone.vit import Backbone
from kora.feature_cache import cache
from kora.feature_cache.cache import KEPT
from kora.feature_cache.rules import prefix_blocks
from kora.heads import LayerSummaries, LinearDepth
from kora.tasks import DepthTask
from tests.support.cached import classifier, fitted, scenes, values
from tests.support.families import tiny

pytestmark = pytest.mark.runs

SITES = ("proj", "fc1", "fc2")
LATE: dict[str, Callable[[], Strategy]] = {
    "LoRA": lambda: LoRA(2, blocks=[1], sites=SITES, dropout=0.1),
    "DoRA": lambda: DoRA(2, blocks=[1], sites=SITES),
    "BitFit": lambda: BitFit(blocks=[1], outer=False),
    "KoRA": lambda: KoRA(PaperForm(2, blocks=[1], sites=SITES), 4),
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "cache")


def count_calls(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("family", ["tiny_vit", "tiny_dinov3", "tiny_beit", "tiny_siglip"])
@pytest.mark.parametrize("name", LATE)
def test_losses_are_those_on_images_and_early_blocks_rest(
    name: str, family: str, folder: str
) -> None:
    losses, metrics, calls = [], [], []
    for option in (False, True):
        backbone = tiny(family)
        options = {"feature_cache": option, "feature_cache_folder": folder}
        task = classifier(LATE[name](), backbone, **options)
        early = count_calls(backbone.model.blocks[0].attn)
        seen, trainer = fitted(task, trainer={"max_epochs": 3})
        losses.append(seen.losses)
        metrics.append(values(trainer))
        calls.append(len(early))
        assert seen.held == {frozenset({"label", "index", KEPT if option else "image"})}
    assert len(losses[0]) == 3 * 5
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-4)
    assert metrics[1] == pytest.approx(metrics[0], abs=1e-4)
    # Once for each batch of training and validation, and for the rows that are compared.
    assert calls[1] <= 10 < calls[0]
    assert "forward" not in vars(backbone.model.blocks[0]), "the block is as it was"


def test_strategies_that_begin_at_the_same_block_share_the_tables(folder: str) -> None:
    for make in (LATE["LoRA"], LATE["BitFit"]):
        options = {"feature_cache": True, "feature_cache_folder": folder}
        task = classifier(make(), tiny("tiny_vit"), **options)
        fitted(task)
    assert [one.filled for one in task.feature_cache.splits] == [0, 0]
    names = sorted(path.name for path in Path(folder).glob("tiny_vit-*"))
    assert len(names) == 2
    assert all(name.startswith("tiny_vit-first_1_blocks-") for name in names)


def test_a_test_after_it_reads_images_with_merged_weights(folder: str) -> None:
    found = []
    for option in (False, True):
        task = classifier(LATE["LoRA"](), feature_cache=option, feature_cache_folder=folder)
        data = scenes()
        _, trainer = fitted(task, data)
        found.append(trainer.test(task, datamodule=data, verbose=False)[0])
    assert found[1] == pytest.approx(found[0], abs=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LoRA(2),
        lambda: BitFit(blocks=[1]),  # and the biases outside of the blocks
        lambda: VPT(2),
        lambda: KoRA(PaperForm(2), 4),
    ],
)
def test_what_changes_the_first_block_has_nothing_to_keep(
    make: Callable[[], Strategy], folder: str
) -> None:
    task = classifier(make(), feature_cache=True, feature_cache_folder=folder)
    with pytest.raises(ValueError, match="changes what the backbone computes"):
        fitted(task)


def test_a_strategy_with_a_forward_of_its_own_must_not_get_empty_images() -> None:
    class Own(LoRA):
        def forward(self, backbone: Backbone, images: torch.Tensor):  # type: ignore[no-untyped-def]
            return super().forward(backbone, images.flip(-1))

    task = classifier(Own(2, blocks=[1]), num_classes=7)
    task.build()
    assert prefix_blocks(task) == 0


def test_blocks_that_are_computed_again_in_backward_need_their_images() -> None:
    task = classifier(LATE["LoRA"](), num_classes=7)
    task.build()
    assert prefix_blocks(task) == 1
    task.backbone.model.set_grad_checkpointing(True)
    assert prefix_blocks(task) == 0


@pytest.mark.parametrize(("levels", "blocks"), [((1,), 1), ((0, 1), 0)])
def test_a_head_that_reads_an_early_level_leaves_less_to_keep(
    levels: tuple[int, ...], blocks: int
) -> None:
    task = DepthTask(tiny("tiny_vit"), LoRA(2, blocks=[1]), head=LinearDepth())
    task.build()
    task.backbone.levels = levels
    assert prefix_blocks(task) == blocks


@pytest.mark.parametrize("layer", ["proj", "block"])
def test_a_head_of_several_layers_leaves_the_blocks_before_them(
    layer: Literal["proj", "block"], folder: str
) -> None:
    losses = []
    for option in (False, True):
        options = {"feature_cache": option, "feature_cache_folder": folder}
        head_layers = LayerSummaries(layer, cls_blocks=[1], mean_blocks=[1])
        task = classifier(LATE["LoRA"](), head_layers=head_layers, **options)
        seen, _ = fitted(task)
        losses.append(seen.losses)
        assert prefix_blocks(task) == 1
        assert seen.held == {frozenset({"label", "index", KEPT if option else "image"})}
    torch.testing.assert_close(losses[1], losses[0], rtol=0, atol=1e-4)


def test_a_head_that_reads_an_early_layer_leaves_nothing() -> None:
    head_layers = LayerSummaries("proj", mean_blocks=[0, 1])
    task = classifier(LATE["LoRA"](), num_classes=7, head_layers=head_layers)
    task.build()
    assert prefix_blocks(task) == 0


def test_auto_keeps_only_what_the_memory_holds(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cache, "free_memory", lambda: 1000)
    task = classifier(LATE["LoRA"](), feature_cache="auto", feature_cache_folder=folder)
    seen, _ = fitted(task)
    assert seen.held == {frozenset({"label", "index", "image"})}
    said = capsys.readouterr().out
    assert "no feature cache: " in said
    assert "model.feature_cache: on" in said
    forced = classifier(LATE["LoRA"](), feature_cache=True, feature_cache_folder=folder)
    seen, _ = fitted(forced)
    assert seen.held == {frozenset({"label", "index", KEPT})}


def test_where_the_system_does_not_say_what_is_free_all_memory_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = cache.free_memory()
    monkeypatch.delitem(os.sysconf_names, "SC_AVPHYS_PAGES")  # as on macOS
    assert cache.free_memory() > free > 0
