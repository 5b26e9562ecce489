"""Claims about AdapterFusion as a strategy: what it fuses, what trains, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from kora.adapters import AdapterFusion, Bottleneck, KoRA, LoRA, LowRankFusion, PaperForm
from kora.adapters.folder import load_adapter, save_adapter
from kora.adapters.fusion_layer import FusionLayer
from kora.backbone.vit import Backbone
from kora.reports.parameters import parameter_report
from kora.tasks import ClassificationTask
from tests.support.blocks import tiny
from tests.support.factory import built, kick, labels_for, nano
from tests.support.fusion_factory import bottleneck_sources, lora_sources, write_source


def mixture(layer: FusionLayer, query: Tensor, outputs: list[Tensor]) -> Tensor:
    """Pfeiffer et al. 2021, section 3.2, without the residual."""
    z = torch.stack(outputs, dim=2)
    s = torch.softmax((layer.query(query)[:, :, None] * layer.key(z)).sum(-1), dim=-1)
    return (s[..., None] * (z @ layer.value.weight.T)).sum(2)


def source_adapters(folders: list[str], key: str, **settings: Any) -> list[Any]:
    """The adapters of the sources at a place, read from their files by hand."""
    found = []
    for folder in folders:
        stored = load_file(Path(folder) / "adapter_model.safetensors")
        rank = len(stored[f"adapter.adapters.{key}.down.bias"])
        adapter = Bottleneck(rank, **settings).make(24).eval()
        adapter.load_state_dict(
            {n: stored[f"adapter.adapters.{key}.{n}"] for n in adapter.state_dict()}
        )
        found.append(adapter)
    return found


@pytest.mark.parametrize("position", ["pfeiffer", "parallel", "post"])
def test_a_block_adds_the_mixture_of_its_sources(position: Any, tmp_path: Path) -> None:
    folders = [
        write_source(
            tmp_path / str(rank),
            Bottleneck(rank, position, drop_path=0.5, dropout=0.5),
            seed=rank,
            backbone=tiny("pre_norm"),
        )
        for rank in (2, 3)
    ]
    task = kick(built(AdapterFusion(folders), backbone=tiny("pre_norm")), scale=0.3).train()
    plain, x = tiny("pre_norm").model.blocks[1], torch.randn(2, 5, 24)
    stream = x + plain.ls1(plain.attn(plain.norm1(x)))
    y = plain.ls2(plain.mlp(plain.norm2(stream)))
    key = {"pfeiffer": "b01_mlp"}.get(position, f"b01_{position}")
    layer = task.adapter.places[key].layer
    read, query = {"pfeiffer": (y, y), "parallel": (stream, y), "post": (stream + y,) * 2}[position]
    outputs = [a(read) for a in source_adapters(folders, key, position=position)]
    expected = stream + y + mixture(layer, query, outputs)
    found = task.backbone.model.blocks[1](x)  # in training: the sources' dropout does not run
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_lora_deltas_are_fused_at_their_site_with_its_output_as_query() -> None:
    task = kick(built(AdapterFusion(lora_sources())), scale=0.2)
    x = torch.randn(2, 5, 128)
    base = nano().model.blocks[3].attn.qkv(x)
    expected = base.clone()
    for name, rows in (("q", slice(0, 128)), ("v", slice(256, 384))):
        outputs = []
        for folder in lora_sources():
            stored = load_file(Path(folder) / "adapter_model.safetensors")
            down, up = (stored[f"adapter.deltas.b03_{name}.{m}"] for m in ("down_RI", "up_OR"))
            outputs.append(0.5 * x @ down.T @ up.T)
        layer = task.adapter.places[f"b03_{name}"].layer
        expected[..., rows] += mixture(layer, base[..., rows], outputs)
    found = task.backbone.model.blocks[3].attn.qkv(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_at_first_it_adds_about_the_mean_of_its_sources(images: Tensor) -> None:
    sources = bottleneck_sources()
    torch.manual_seed(0)
    task = built(AdapterFusion(sources))
    place = task.adapter.fused()["b00_attn"]
    x = torch.randn(2, 5, 128)
    mean = sum(adapter(x) for adapter in place.adapters) / 2
    torch.testing.assert_close(place.add(x, x), mean, rtol=0.2, atol=0.02)
    assert not torch.allclose(task.features(images).pooled, nano()(images).pooled, atol=1e-3)


def test_only_q_k_and_v_train_and_a_file_holds_the_sources_too() -> None:
    task = built(AdapterFusion(bottleneck_sources()))
    names = [n for n in task.trainables() if n.startswith("adapter.")]
    assert len(names) == 4 * 5
    assert all(".layer." in name for name in names)
    assert sum(task.trainables()[n].numel() for n in names) == 4 * (3 * 128**2 + 2 * 128)
    frozen = {k: v for k, v in task.adapter.tensors().items() if f"adapter.{k}" not in names}
    for number, folder in enumerate(bottleneck_sources()):
        stored = load_file(Path(folder) / "adapter_model.safetensors")
        for key in ("b00_attn", "b00_mlp", "b02_attn", "b02_mlp"):
            for name in ("down.weight", "up.bias", "scale"):
                mine = frozen.pop(f"places.{key}.adapters.{number}.{name}")
                assert torch.equal(mine, stored[f"adapter.adapters.{key}.{name}"])
    assert len(frozen) == 2 * 4 * 2


def test_the_parameter_table_shows_it_by_block_and_place() -> None:
    report = parameter_report(built(AdapterFusion(bottleneck_sources())))
    one = 3 * 128**2 + 2 * 128
    expected = {(block, place): one for block in "02" for place in ("attn", "mlp")}
    assert {k: v for k, v in report.cells.items() if k[0] != "–"} == expected


def test_the_penalty_is_in_the_loss_and_pulls_v_to_the_identity(images: Tensor) -> None:
    batch = {"image": images, "label": labels_for(images)}

    def loss(**options: Any) -> tuple[Tensor, Any]:
        task = kick(built(AdapterFusion(bottleneck_sources(), **options)))
        return task.training_step(batch, 0), task

    (with_it, task), (without, _) = loss(), loss(regulariser=0.0)
    values = [place.layer.value.weight for place in task.adapter.fused().values()]
    distance = sum((torch.eye(128) - value).square().sum() for value in values)
    torch.testing.assert_close(with_it - without, 0.01 * distance, rtol=1e-3, atol=1e-4)
    plain = F.cross_entropy(task(images), batch["label"])
    torch.testing.assert_close(without, plain)
    with_it.backward()
    assert all(p.grad is not None for p in task.trainables().values())


def test_a_frozen_fusion_adds_no_penalty(images: Tensor) -> None:
    task = built(AdapterFusion(bottleneck_sources()), adapter_trainable=False)
    batch = {"image": images, "label": labels_for(images)}
    expected = F.cross_entropy(task(images), batch["label"])
    assert torch.equal(task.training_step(batch, 0), expected)


def test_low_rank_has_the_size_of_its_formula() -> None:
    task = built(LowRankFusion(bottleneck_sources(), rank=5))
    ours = sum(p.numel() for n, p in task.trainables().items() if n.startswith("adapter."))
    assert ours == 4 * (4 * 128 * 5 + 2 * 5 + 128)


def test_what_it_attends_to_is_the_mean_over_all_tokens(images: Tensor) -> None:
    task = kick(built(AdapterFusion(bottleneck_sources())), scale=0.3).eval()
    place = task.adapter.fused()["b00_mlp"]
    seen: list[Tensor] = []
    place.layer.register_forward_hook(lambda _m, _a, out: seen.append(out[1].detach()))
    task.adapter.watch(True)
    with torch.inference_mode():
        task(images)
        task(images[:1])
    every = torch.cat([s.flatten(0, 1) for s in seen])
    torch.testing.assert_close(place.share_N, every.mean(0))
    assert place.seen == len(every) == 4 * 65
    task.adapter.watch(False)
    task(images)
    assert place.seen == len(every)
    task.adapter.watch(True)
    assert place.seen == 0


def test_names_of_sources_are_told_apart(tmp_path: Path) -> None:
    assert names(bottleneck_sources()) == ["paint/Bottleneck", "studio/Bottleneck"]
    assert names(lora_sources()) == [f"source/LoRA/seed{seed}" for seed in (3, 4, 5)]
    twins = [str(shutil.copytree(lora_sources()[0], tmp_path / n)) for n in ("a", "b")]
    assert names(twins) == ["source/LoRA/seed3 (1)", "source/LoRA/seed3 (2)"]


def names(sources: Any) -> list[str]:
    strategy = AdapterFusion(sources)
    strategy.attach(nano())
    return [source.name for source in strategy.earlier_runs.found]


# -- files --------------------------------------------------------------------------------------


@pytest.fixture
def moved(tmp_path: Path) -> list[str]:
    """Copies of the sources in another place."""
    return [
        str(shutil.copytree(folder, tmp_path / f"moved_{number}"))
        for number, folder in enumerate(bottleneck_sources())
    ]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The adapter folder of a fusion."""
    task = kick(built(AdapterFusion(bottleneck_sources())))
    return save_adapter(
        tmp_path / "fusion", task.kept_tensors(), adapter=task.adapter, backbone=task.backbone
    )


def test_it_loads_with_its_sources_in_other_folders(
    moved: list[str], saved: Path, images: Tensor
) -> None:
    expected = kick(built(AdapterFusion(bottleneck_sources()))).features(images).pooled
    task = built(AdapterFusion(moved), seed=9)
    load_adapter(saved, task.adapter, task.backbone)
    assert torch.equal(task.features(images).pooled, expected)


def test_its_folder_rebuilds_it_when_its_sources_are_gone(
    moved: list[str], tmp_path: Path, images: Tensor
) -> None:
    task = kick(built(AdapterFusion(moved)))
    expected, names = (
        task.features(images).pooled,
        [s.name for s in task.adapter.earlier_runs.found],
    )
    for number in range(2):  # what was rebuilt is as whole as what was trained
        folder = save_adapter(
            tmp_path / str(number),
            task.kept_tensors(),
            adapter=task.adapter,
            backbone=task.backbone,
        )
        for source in moved:
            shutil.rmtree(source, ignore_errors=True)
        with pytest.warns(UserWarning, match=r"moved_0, .*moved_1; those in"):
            task = built(AdapterFusion(moved), seed=9, adapter_from=str(folder))
        assert torch.equal(task.features(images).pooled, expected)
        assert [source.name for source in task.adapter.earlier_runs.found] == names


def test_a_source_that_is_still_there_is_compared_when_another_is_gone(
    moved: list[str], saved: Path
) -> None:
    shutil.rmtree(moved[0])
    with pytest.warns(UserWarning, match="moved_0; those"):
        built(AdapterFusion(moved), adapter_from=str(saved))
    write_source(Path(moved[1]), Bottleneck(4, "houlsby", scale="channel", blocks=[0, 2]), seed=30)
    with (
        pytest.warns(UserWarning, match="moved_0; those"),
        pytest.raises(ValueError, match=r"another source adapter than sources\[1\]"),
    ):
        built(AdapterFusion(moved), adapter_from=str(saved))


def test_a_file_does_not_stand_in_for_more_sources_than_it_was_trained_on(
    moved: list[str], saved: Path, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="gone is no adapter folder"):
        built(AdapterFusion([*moved, str(tmp_path / "gone")]), adapter_from=str(saved))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("last.ckpt", lambda path: path.write_bytes(b"PK"), "last.ckpt is damaged, or was not"),
        ("last.ckpt", lambda path: torch.save({}, path), "last.ckpt was not written by kora"),
        (
            "adapter_config.json",
            lambda path: path.write_text('"args"'.join(path.read_text().rsplit('"init_args"', 1))),
            "adapter_config.json is damaged",
        ),
    ],
    ids=["truncated", "of others", "record"],
)
def test_a_damaged_file_cannot_stand_in(
    file: str, damage: Any, message: str, moved: list[str], saved: Path
) -> None:
    shutil.rmtree(moved[0])
    damage(saved / file)
    task = ClassificationTask(nano(), AdapterFusion(moved), num_classes=7, adapter_from=str(saved))
    if file.endswith(".ckpt"):
        task.checkpoint = str(saved / file)
    with pytest.raises((RuntimeError, ValueError), match=message):
        task.build()


def test_other_sources_or_another_order_are_refused(moved: list[str], saved: Path) -> None:
    same_ranks = [
        write_source(
            Path(moved[0]).parent / f"other_{rank}",
            Bottleneck(rank, "houlsby", scale="channel", blocks=[0, 2]),
            seed=rank + 10,
        )
        for rank in (3, 4)
    ]
    task = built(AdapterFusion(same_ranks))
    with pytest.raises(ValueError, match=r"another source adapter than sources\[0\].*same order"):
        load_adapter(saved, task.adapter, task.backbone)
    checkpoint = kick(built(AdapterFusion(moved))).state_dict()
    with pytest.raises(ValueError, match=r"The checkpoint was trained on another source adapter"):
        task.load_state_dict(checkpoint)
    turned = built(AdapterFusion(moved[::-1]))
    with pytest.raises(ValueError, match="does not fit this model"):
        load_adapter(saved, turned.adapter, turned.backbone)


# -- refusals -----------------------------------------------------------------------------------


def attach(sources: Any, backbone: Backbone | None = None) -> None:
    AdapterFusion(sources).attach(nano() if backbone is None else backbone)


@pytest.mark.parametrize("sources", [[], ["one"], "runs/a/adapter"])
def test_fewer_than_two_sources_are_refused(sources: Any) -> None:
    with pytest.raises(ValueError, match="two adapter folders or more: over a single adapter"):
        AdapterFusion(sources)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoRA(2), "is of kora.adapters.LoRA, and .* of kora.adapters.Bottleneck"),
        (lambda: KoRA(PaperForm(2), 4), "is of kora.adapters.KoRA, which cannot be fused"),
        (lambda: Bottleneck(3, "post", blocks=[0, 2]), "position='post', and .* 'houlsby'"),
        (lambda: Bottleneck(3, "houlsby"), r"blocks=None, and .* has \[0, 2\]"),
    ],
    ids=["strategy", "no kind to fuse", "position", "blocks"],
)
def test_sources_that_do_not_go_together_are_refused(
    make: Any, message: str, tmp_path: Path
) -> None:
    other = write_source(tmp_path / "other", make())
    with pytest.raises(ValueError, match=message):
        attach([bottleneck_sources()[0], other])


def test_other_sites_are_refused_and_another_order_of_them_is_not(tmp_path: Path) -> None:
    for sites in (["q", "v"], ["proj", "q", "v"]):
        write_source(tmp_path / str(len(sites)), LoRA(2, sites=sites))
    attach([lora_sources()[0], str(tmp_path / "3")])
    with pytest.raises(ValueError, match=r"sites=\['q', 'v'\], and .* has \['q', 'v', 'proj'\]"):
        attach([lora_sources()[0], str(tmp_path / "2")])


def test_the_same_folder_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice; attention between equal adapters"):
        attach([bottleneck_sources()[0]] * 2)


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(99)
    backbone = Backbone("vit_nano", weights="random")
    with pytest.raises(ValueError, match=r"was trained on 'vit_nano' with weights .* this run has"):
        attach(bottleneck_sources(), backbone)


def test_a_missing_folder_is_refused(moved: list[str]) -> None:
    shutil.rmtree(moved[1])
    remedy = r"moved_1 is no adapter folder.*Train .* first.*--ckpt_path.*model.adapter_from"
    with pytest.raises(FileNotFoundError, match=remedy):
        attach(moved)


def test_a_truncated_file_is_refused(moved: list[str]) -> None:
    path = Path(moved[1]) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(RuntimeError, match=r"moved_1/adapter_model.safetensors cannot be read"):
        attach(moved)


def change(folder: str, edit: Any) -> None:
    path = Path(folder) / "adapter_config.json"
    record = json.loads(path.read_text())
    edit(record)
    del record["record_sha256"]
    path.write_text(json.dumps(record))


def test_another_version_is_refused(moved: list[str]) -> None:
    change(moved[1], lambda record: record.update(format=2, kora_version="9.0"))
    with pytest.raises(ValueError, match=r"moved_1.* is of format 2, written by kora 9.0"):
        attach(moved)


def test_arguments_of_another_version_are_refused(moved: list[str]) -> None:
    change(moved[1], lambda record: record["adapter"]["init_args"].update(gate=True))
    with pytest.raises(ValueError, match=r"arguments that this version does not take.*'gate'"):
        attach(moved)


def test_a_config_of_another_rank_than_its_tensors_is_refused(moved: list[str]) -> None:
    change(moved[1], lambda record: record["adapter"]["init_args"].update(rank=7))
    with pytest.raises(ValueError, match=r"moved_1.* does not fit this model.*has shape"):
        attach(moved)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (AdapterFusion, {"regulariser": -0.1}, "regulariser=-0.1, expected 0 or more"),
        (LowRankFusion, {"rank": 0}, "LowRankFusion: rank=0, expected 1 or more"),
        (LowRankFusion, {"rank": 129}, r"rank=129 is larger than the layer's width \(128\)"),
    ],
)
def test_a_wrong_setting_is_one_clear_error(kind: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(bottleneck_sources(), **options).attach(nano())
