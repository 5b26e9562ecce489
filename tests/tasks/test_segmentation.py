"""Claims about the segmentation task: what it learns from, what it counts, what is beside it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import seed_everything
from torch import Tensor
from torch.nn.functional import interpolate, one_hot
from torchmetrics.classification import MulticlassJaccardIndex

from datamodules import SegmentationFolder, Synthetic
from kora.adapters import (
    Injection,
    KoRA,
    LinearProbe,
    LoRA,
    MultiLayerProbe,
    PaperForm,
    QueryReadout,
    Readout,
    RefinedForm,
    Strategy,
    Sum,
    TokenReadout,
)
from kora.heads import DPTSegmentation, LinearSegmentation, QuerySegmentation
from kora.losses import SegmentationLoss
from kora.tasks import SegmentationTask
from kora.tasks.windows import averaged_windows, starts
from tests.support.factory import kick, nano
from tests.support.segmentation import mask_scenes, write_pair, write_pairs
from tests.support.tasks import trainer

Batch = dict[str, Tensor]


def unbuilt(adapter: Strategy | None = None, **options: Any) -> SegmentationTask:
    seed_everything(2, verbose=False)
    return SegmentationTask(nano(image_size=options.pop("image_size", 32)), adapter, **options)


def built(adapter: Strategy | None = None, **options: Any) -> SegmentationTask:
    task = unbuilt(adapter, **{"num_classes": 4, **options})
    task.build()
    return task.eval()


def batch_of(data: Synthetic, split: Any = "test", images: int = 4) -> Batch:
    data.setup()
    return data.samples(split, list(range(images)))


def adam(rate: float) -> Any:
    return lambda params: torch.optim.AdamW(params, lr=rate)


# -- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "loss"),
    [
        (LinearSegmentation(levels=4, dropout=0), None),
        (DPTSegmentation(features=16, dropout=0), SegmentationLoss(dice=1)),
        (QuerySegmentation(width=32, heads=2), SegmentationLoss(lovasz=1)),
    ],
)
def test_it_learns_the_masks_of_a_few_scenes(head: Any, loss: Any, tmp_path: Path) -> None:
    data = mask_scenes(batch_size=12, train_images=24, val_images=12)
    data.setup()
    task = unbuilt(head=head, loss=loss, num_classes=4, optimizer=adam(3e-3), schedule="constant")
    fit = trainer(tmp_path, max_epochs=60, enable_checkpointing=False, limit_val_batches=0)
    fit.fit(task, data)
    batch = data.samples("train", list(range(12)))
    found = task.eval().predict_step(batch, 0)["mask"]
    right = (found == batch["mask"])[batch["mask"] > 0].float().mean()
    assert right > 0.6, "of the pixels of things, which a majority never finds"


def test_pixels_that_are_ignored_teach_nothing() -> None:
    task, batch = built(), batch_of(mask_scenes())
    task.log = lambda *_, **__: None
    known = batch["mask"].clone()
    batch["mask"][:, :16] = 255
    size = batch["mask"].shape[1:]
    logits = interpolate(task(batch["image"]).detach(), size)
    taught = []
    for there in (0.0, 9.0, -9.0):  # added to what the model says of class 1 in the ignored half
        guess = logits.clone()
        guess[:, 1, :16] += there
        guess.requires_grad_()
        task.loss(guess, batch["mask"]).backward()
        taught.append(guess.grad)
    assert torch.equal(taught[0], taught[1])
    assert torch.equal(taught[0], taught[2])
    assert not taught[0][:, :, :16].any()
    assert task.training_step({**batch, "mask": known}, 0) != task.training_step(batch, 0)


def test_the_head_trains_alone_without_an_adapter_and_beside_it_with_one() -> None:
    alone, beside = built(LinearProbe()), built(LoRA(2))
    assert {name.split(".")[0] for name in alone.trainables()} == {"head"}
    assert {name.split(".")[0] for name in beside.trainables()} == {"adapter", "head"}
    assert "head.norm.running_mean" in beside.kept_tensors()


# -- evaluation -----------------------------------------------------------------------------------


def test_the_logged_miou_is_that_of_the_predictions(tmp_path: Path) -> None:
    data, task = mask_scenes(eval_batch_size=5), unbuilt()
    fit = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    fit.fit(task, data)
    (found,) = fit.test(task, data, verbose=False)
    task.eval()
    jaccard = MulticlassJaccardIndex(4, average="macro", ignore_index=255)
    for batch in data.test_dataloader():
        jaccard.update(task.predict_step(batch, 0)["mask"], batch["mask"])
    assert found["test/miou"] == pytest.approx(float(jaccard.compute()), abs=1e-6)


def test_the_constants_beside_the_model_come_from_training_masks_alone(tmp_path: Path) -> None:
    data, task = mask_scenes(), unbuilt()
    trainer(tmp_path, enable_checkpointing=False).test(task, data, verbose=False)
    scores = task.baselines()
    assert set(scores) == {"majority", "mode_map"}
    train = torch.cat([batch["mask"] for batch in data.train_dataloader()])
    usual = one_hot(train.long(), 4).sum(0).argmax(-1)
    test = torch.cat([batch["mask"] for batch in data.test_dataloader()])
    assert scores["majority"]["pixel_accuracy"] == pytest.approx(float((test == 0).float().mean()))
    assert scores["mode_map"]["miou"] >= scores["majority"]["miou"]
    right = float((test == usual).float().mean())
    assert scores["mode_map"]["pixel_accuracy"] == pytest.approx(right)
    assert right != pytest.approx(float((test == test.mode(0).values).float().mean()))
    trainer(tmp_path, enable_checkpointing=False, max_steps=1).fit(task, data)
    assert task.baselines() == {}, "they are not scored while it trains"


def test_it_is_scored_at_the_size_of_each_mask(tmp_path: Path) -> None:
    write_pairs(tmp_path / "train", ["a", "b", "c"], size=(32, 32), classes=2)
    for name, size in (("low", (20, 60)), ("tall", (50, 24))):
        mask = torch.zeros(size, dtype=torch.uint8)
        mask[:, size[1] // 2 :] = 1
        write_pair(tmp_path / "test", name, mask.numpy())
    data = SegmentationFolder(
        str(tmp_path), image_size=32, class_names=["left", "right"], num_workers=0, seed=0,
        val_images=1,
    )  # fmt: skip
    data.setup()
    task = built(num_classes=2)
    batch = data.samples("test", [0, 1])
    shapes = [tuple(mask.shape) for mask in task.masks_of(batch, [(20, 60), (50, 24)])]
    assert shapes == [(20, 60), (50, 24)]
    found = task.predict_step(batch, 0)
    assert found["mask"].shape == (2, 50, 60)
    assert (found["mask"][0, 20:] == 255).all()
    task.test_metrics.update(
        list(task.masks_of(batch, [(20, 60), (50, 24)])),
        [batch["mask"][0, :20], batch["mask"][1, :, :24]],
    )
    assert int(task.test_metrics.per_image()["true"].sum()) == 20 * 60 + 50 * 24


def test_a_data_module_that_names_groups_gets_the_miou_of_each(tmp_path: Path) -> None:
    data = mask_scenes()
    names = ["day" if number % 3 else "night" for number in range(24)]
    names[-2:] = ["a b", "a-b"]
    data.group_names = lambda part: names if part == "test" else None
    task = unbuilt()
    (found,) = trainer(tmp_path, enable_checkpointing=False).test(task, data, verbose=False)
    groups = {key for key in found if key.startswith("test/miou_")}
    assert groups == {"test/miou_day", "test/miou_night", "test/miou_a_b", "test/miou_a_b_1"}
    task.eval()
    jaccard = MulticlassJaccardIndex(4, average="macro")
    night = data.samples("test", list(range(0, 24, 3)))
    jaccard.update(task.predict_step(night, 0)["mask"], night["mask"])
    assert found["test/miou_night"] == pytest.approx(float(jaccard.compute()), abs=1e-6)


# -- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "window", "stride"), [(64, 64, 0.5), (65, 64, 0.5), (200, 64, 2 / 3)]
)
def test_windows_cover_a_side_and_end_at_its_end(length: int, window: int, stride: float) -> None:
    found = starts(length, window, stride)
    assert found[0] == 0
    assert found[-1] == length - window
    assert all(0 < b - a <= stride * window for a, b in pairwise(found))


def test_the_logits_of_windows_are_averaged_where_they_overlap() -> None:
    def model(images: Tensor) -> Tensor:  # each window says where its pixels are in it
        ramp = torch.arange(4.0).expand(len(images), 1, 4, 4)
        return torch.cat([images[:, :1], ramp], dim=1)

    image = torch.arange(24.0).view(1, 4, 6).expand(3, -1, -1)
    found = averaged_windows(model, image, (4, 4), 0.5)
    assert torch.equal(found[0], image[0])
    assert found[1][0].tolist() == [0, 1, 1, 2, 2, 3]  # columns 2 and 3 are in both windows


def test_one_window_over_the_whole_image_is_the_whole_image(images: Tensor) -> None:
    whole, slid = built(), built(protocol="slide")
    batch = {"image": images[..., :32, :32]}
    assert torch.equal(whole.predict_step(batch, 0)["mask"], slid.predict_step(batch, 0)["mask"])


def test_a_mirrored_image_is_averaged_in_where_the_protocol_says_so(images: Tensor) -> None:
    batch = {"image": images}
    for window in ("whole", "slide"):
        plain = built(protocol={"window": window})
        both = built(protocol={"window": window, "flip_tta": True})
        size = [tuple(images.shape[-2:])] * len(images)
        ours = torch.stack(list(both.scores_of(batch, size)))
        mirror = {"image": images.flip(-1)}
        seen = [torch.stack(list(plain.scores_of(one, size))).softmax(1) for one in (batch, mirror)]
        torch.testing.assert_close(ours, (seen[0] + seen[1].flip(-1)) / 2, rtol=1e-4, atol=1e-5)


# -- what is refused ------------------------------------------------------------------------------


def test_data_without_masks_is_told_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.maps: .mask."):
        trainer(tmp_path, max_steps=1).fit(unbuilt(), mask_scenes(maps=["depth_m"]))


def test_a_number_of_classes_that_is_not_the_datas_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"num_classes is 5, .* 4 classes"):
        trainer(tmp_path, max_steps=1).fit(unbuilt(num_classes=5), mask_scenes())


def test_a_probe_for_classifiers_is_refused() -> None:
    with pytest.raises(ValueError, match="MultiLayerProbe is for classifiers"):
        built(MultiLayerProbe())


def test_the_evaluation_names_its_split_and_is_held_to_it() -> None:
    task = built(protocol={"split": "val"})
    assert task.evaluation("val")["split"] == "val"
    with pytest.raises(ValueError, match="this data evaluates on 'test'"):
        task.evaluation("test")


def test_a_checkpoint_of_another_head_is_refused(tmp_path: Path) -> None:
    fit = trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    fit.fit(unbuilt(head=LinearSegmentation(dropout=0.1)), mask_scenes())
    path = tmp_path / "one.ckpt"
    fit.save_checkpoint(path)
    other = unbuilt(head=LinearSegmentation(dropout=0.2))
    with pytest.raises(ValueError, match=r"Make model\.head equal"):
        trainer(tmp_path, max_epochs=2).fit(other, mask_scenes(), ckpt_path=path)


# -- KoRA -----------------------------------------------------------------------------------------


def refined(readout: Readout, **options: Any) -> KoRA:
    return KoRA(RefinedForm(sites=["proj"], **options), 8, composer=Sum(), readout=readout)


@pytest.mark.parametrize(
    "adapter",
    [
        KoRA(PaperForm(2, pool="tokens", spatial=True), readout=TokenReadout()),
        KoRA(PaperForm(2, inject=False, pool="tokens", spatial=True), readout=TokenReadout()),
        refined(TokenReadout(), pool="tokens", spatial=True),
        refined(QueryReadout()),
        refined(QueryReadout(), inject=Injection(2)),
    ],
    ids=lambda adapter: adapter.label,
)
def test_every_form_of_kora_starts_as_the_backbone_and_all_of_it_learns(
    adapter: KoRA, images: Tensor
) -> None:
    head = QuerySegmentation(width=16, heads=2)
    task = built(adapter, head=head).train()
    plain = built(head=QuerySegmentation(width=16, heads=2))
    plain.head.load_state_dict(task.head.state_dict(), strict=False)
    assert torch.equal(task.eval()(images), plain(images))
    kick(task).train()
    (task(images) * torch.randn(4, 1, 1)).square().mean().backward()
    idle = [name for name, p in task.trainables().items() if p.grad is None or not p.grad.any()]
    assert not idle


def test_a_composed_query_changes_the_masks_through_the_head_alone(images: Tensor) -> None:
    task = built(refined(QueryReadout()), head=QuerySegmentation(width=16, heads=2))
    kick(task)
    composed = task(images)
    torch.nn.init.zeros_(task.head.from_composed.weight)
    assert not torch.equal(task(images), composed)


def test_the_composed_query_of_a_side_network_is_read_from_cached_features(tmp_path: Path) -> None:
    found = {}
    for option in (True, False):
        task = unbuilt(
            refined(QueryReadout()), head=QuerySegmentation(width=16, heads=2),
            feature_cache=option, feature_cache_folder=str(tmp_path / "cache"),
        )  # fmt: skip
        fit = trainer(tmp_path, max_epochs=2, enable_checkpointing=False)
        fit.fit(task, mask_scenes())
        found[option] = {name: p.detach() for name, p in task.trainables().items()}
        assert bool(task.feature_cache.splits) == option
    for name, value in found[True].items():
        torch.testing.assert_close(value, found[False][name], rtol=1e-3, atol=1e-5)


def test_a_head_without_queries_refuses_an_adapter_that_sends_to_them() -> None:
    with pytest.raises(ValueError, match=r"LinearSegmentation has none.*QuerySegmentation"):
        built(refined(QueryReadout()))


@pytest.mark.parametrize("form", [PaperForm, RefinedForm])
def test_a_spatial_step_needs_every_token(form: Any) -> None:
    with pytest.raises(ValueError, match=r"spatial: true.*Use pool='tokens'"):
        form(spatial=True)


@pytest.mark.parametrize(
    ("adapter", "head", "label"),
    [
        (LoRA(2), None, "LoRA"),
        (LoRA(2), LinearSegmentation(levels=1), "LoRA-one-level"),
        (LinearProbe(), DPTSegmentation(), "LinearProbe-DPT"),
        (LinearProbe(), QuerySegmentation(), "LinearProbe-queries"),
        (refined(QueryReadout()), QuerySegmentation(), "KoRA-refined-queries"),
    ],
)
def test_runs_of_different_heads_have_different_names(
    adapter: Strategy, head: Any, label: str
) -> None:
    assert unbuilt(adapter, head=head).label == label
