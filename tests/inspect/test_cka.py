"""kora cka: what it says of runs, what it writes, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ckatorch import cka_batch
from PIL import Image

import kora as package
from kora.backbone.layers import LayerReader
from kora.cli import main
from kora.inspect.data import run_datamodule
from kora.tasks.load import load_backbone
from tests.support.adapter_factory import tiny_in_file
from tests.support.cli import Outcome, depth_config, kora, tiny_config, write_config

pytestmark = pytest.mark.runs

Capture = pytest.CaptureFixture[str]
Cka = Callable[..., Outcome]
LAYERS = ["embedding", *(f"block {i}" for i in range(6)), "final"]
KORA_SIDE = {
    "class_path": "kora.adapters.KoRA",
    "init_args": {
        "node_form": {
            "class_path": "kora.adapters.PaperForm",
            "init_args": {"rank": 2, "inject": False},
        },
        "d_comp": 4,
        "readout": {"class_path": "kora.adapters.ClsReadout", "init_args": {"init": "default"}},
    },
}


def fit(folder: Path, name: str, backbone: dict[str, Any], *options: str, **model: Any) -> Path:
    """A run of two steps; its folder."""
    config = tiny_config(experiment=name, runs_dir=str(folder / "runs"))
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}}
    config["model"]["init_args"] |= {"backbone": backbone, "optimizer": optimizer, **model}
    main(["fit", "--config", str(write_config(folder / f"{name}.yaml", config)), *options])
    (results,) = (folder / "runs" / name).rglob("results.json")
    return results.parent


NANO = {"name": "vit_nano", "image_size": 32}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cka")


@pytest.fixture(scope="module")
def lora(there: Path) -> Path:
    return fit(there, "one", NANO)


@pytest.fixture(scope="module")
def other(there: Path) -> Path:
    return fit(there, "two", NANO, "--seed_everything", "1")


@pytest.fixture(scope="module")
def side(there: Path) -> Path:
    return fit(there, "side", NANO, adapter=KORA_SIDE)


@pytest.fixture
def cka(capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cka:
    """`kora cka` into `tmp_path / "out"`, with small batches; without its maps, which take half."""

    def run(*args: str | Path, batch_size: int = 8, draws: bool = False) -> Outcome:
        options = ("--out", tmp_path / "out", "--batch_size", str(batch_size))
        with monkeypatch.context() as here:
            if not draws:
                here.setattr("kora.inspect.cka.cka_map", lambda *args, **options: args[3])
            return kora(capfd, "cka", *args, *options)

    return run


def record(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out" / "cka.json").read_text("utf-8"))
    return found


def matrix(tmp_path: Path, name: str) -> np.ndarray[Any, Any]:
    rows = record(tmp_path)["comparisons"][name]["cka"]
    return np.array([[math.nan if v is None else v for v in row] for row in rows])


def vectors(readers: Sequence[LayerReader], run: Path) -> list[list[torch.Tensor]]:
    """Layers of each model for all test images in their own order, unshuffled."""
    images = run_datamodule(run).images("test", range(24))
    return [[torch.from_numpy(layer) for layer in reader(images)] for reader in readers]


def test_runs_that_normalise_in_another_way_have_a_frozen_backbone_each(
    cka: Cka, lora: Path, there: Path, tmp_path: Path
) -> None:
    imagenet = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    scaled = fit(there, "scaled", NANO | imagenet)
    done = cka(lora, scaled)
    assert done.code == 0, done.err
    assert {"frozen", "frozen2"} <= set(record(tmp_path)["models"])
    assert matrix(tmp_path, "run_vs_run2")[0, 0] < 1, "the embedding already differs"


def test_one_run_is_compared_with_itself_and_with_its_frozen_backbone(
    cka: Cka, lora: Path, tmp_path: Path
) -> None:
    done = cka(lora)
    assert done.code == 0, done.err
    found = record(tmp_path)
    assert (found["images"], found["batches"], found["schema"]) == (24, 3, 1)
    assert set(found["comparisons"]) == {"within_run", "within_frozen", "run_vs_frozen"}
    for comparison in found["comparisons"].values():
        assert comparison["rows"]["layers"] == comparison["columns"]["layers"] == LAYERS
    np.testing.assert_array_equal(np.diag(matrix(tmp_path, "within_run")), 1)
    np.testing.assert_array_equal(np.diag(matrix(tmp_path, "within_frozen")), 1)
    against = matrix(tmp_path, "run_vs_frozen")
    assert against[0, 0] == pytest.approx(1, abs=1e-12)  # the embedding is before the adapter
    assert 0.3 < against[-1, -1] < 0.9999
    low, high = (
        found["comparisons"]["run_vs_frozen"][f"diagonal_{end}"] for end in ("low", "high")
    )
    assert all(a <= b for a, b in zip(low, high, strict=True))
    assert found["unchanged_layers"] == {"run": ["embedding"]}
    assert found["settings"]["features"] == "mean"
    assert "LoRA, seed 0" in done.out
    assert "control: frozen" in done.out
    assert "a bootstrap over 3 minibatches" in done.out


@pytest.mark.parametrize("kind", ["cls", "mean"])
def test_its_numbers_are_those_of_ckatorch_on_the_features_of_the_model(
    kind: Any, cka: Cka, lora: Path, tmp_path: Path
) -> None:
    done = cka(lora, "--features", kind, batch_size=24)  # one batch, so the order is no matter
    assert done.code == 0, done.err
    model = package.load_adapter(lora)
    readers = [
        LayerReader(model.backbone, kind, model.task.features),
        LayerReader(load_backbone(lora), kind),
    ]
    run, frozen = vectors(readers, lora)
    for name, first, second in (("run_vs_frozen", run, frozen), ("within_run", run, run)):
        found = matrix(tmp_path, name)
        for i, x in enumerate(first):
            for j, y in enumerate(second):
                if kind == "cls" and 0 in (i, j):
                    assert np.isnan(found[i, j])
                else:
                    assert abs(found[i, j] - float(cka_batch(x[None], y[None]))) < 1e-8


def test_two_runs_are_compared_with_each_other_and_share_a_frozen_backbone(
    cka: Cka, lora: Path, other: Path, tmp_path: Path
) -> None:
    done = cka(lora, other)
    assert done.code == 0, done.err
    names = {"within_run", "within_run2", "within_frozen"}
    names |= {"run_vs_frozen", "run2_vs_frozen", "run_vs_run2"}
    assert set(record(tmp_path)["comparisons"]) == names
    assert record(tmp_path)["models"]["run2"]["seed"] == 1
    between = np.diag(matrix(tmp_path, "run_vs_run2"))
    assert between[0] == pytest.approx(1, abs=1e-12)
    assert between[-1] < 0.9999
    assert "vs LoRA, seed 1" in done.out


def test_a_side_network_changes_the_final_feature_alone_and_this_is_said(
    cka: Cka, side: Path, tmp_path: Path
) -> None:
    done = cka(side)
    assert done.code == 0, done.err
    np.testing.assert_allclose(
        matrix(tmp_path, "within_run")[:-1, :-1], matrix(tmp_path, "within_frozen")[:-1, :-1]
    )
    diagonal = np.diag(matrix(tmp_path, "run_vs_frozen"))
    np.testing.assert_allclose(diagonal[:-1], 1, rtol=1e-12)
    assert diagonal[-1] < 1 - 1e-7
    assert record(tmp_path)["unchanged_layers"]["run"] == LAYERS[:-1]
    assert "KoRA-side, seed 0 changes no block output" in done.out
    (final,) = [line for line in done.out.splitlines() if line.startswith("│ final")]
    assert ">0.9999" in final  # it moved little in two steps, and is not the same
    assert "CKA between its blocks is that of the frozen backbone" in done.out


def test_a_composition_beside_the_pooled_vector_is_part_of_the_final_feature(
    cka: Cka, there: Path, tmp_path: Path
) -> None:
    readout = {"class_path": "kora.adapters.LogitReadout", "init_args": {"init": "orthogonal"}}
    arguments = {**KORA_SIDE["init_args"], "readout": readout}
    done = cka(fit(there, "logits", NANO, adapter={**KORA_SIDE, "init_args": arguments}))
    assert done.code == 0, done.err  # its final feature has more channels than the frozen one
    assert record(tmp_path)["unchanged_layers"]["run"] == LAYERS[:-1]


def test_a_linear_probe_changes_nothing_and_this_is_said(
    cka: Cka, there: Path, tmp_path: Path
) -> None:
    probe = fit(there, "probe", NANO, adapter={"class_path": "kora.adapters.LinearProbe"})
    done = cka(probe)
    assert "LinearProbe, seed 0 changes no layer, not even the final feature" in done.out
    np.testing.assert_allclose(np.diag(matrix(tmp_path, "run_vs_frozen")), 1, rtol=1e-12)


def test_the_files_hold_what_the_json_does(cka: Cka, lora: Path, tmp_path: Path) -> None:
    assert cka(lora, "--features", "cls", draws=True).code == 0
    out = tmp_path / "out"
    with (out / "cka.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 8 * 8
    against = matrix(tmp_path, "run_vs_frozen")
    for row in rows:
        place = LAYERS.index(row["layer"]), LAYERS.index(row["other_layer"])
        if row["comparison"] == "run_vs_frozen":
            value = float(row["cka"] or "nan")
            np.testing.assert_equal(value, against[place])
            assert bool(row["low"]) == (place[0] == place[1] and place[0] > 0)
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {f"cka_{name}.png" for name in record(tmp_path)["comparisons"]}
    for name in pictures:
        Image.open(out / name).verify()
    assert not list(out.glob(".*"))  # no temporary file is left


def test_the_order_is_drawn_anew_by_the_seed_and_the_same_for_the_same(
    cka: Cka, lora: Path, tmp_path: Path
) -> None:
    found = []
    for seed in ("0", "0", "1"):
        assert cka(lora, "--images", "16", "--seed", seed).code == 0
        found.append(record(tmp_path)["comparisons"])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_few_images_are_warned_of_with_the_biased_value_at_this_width(
    cka: Cka, lora: Path, tmp_path: Path
) -> None:
    done = cka(lora)
    (line,) = [text for text in done.err.splitlines() if "warning" in text]
    assert "24 images; 1000 or more are advised" in line
    # d / (d + n) = 128 / 160 = 0.8 for Gaussian features of width 128.
    assert "biased estimate of one batch of 32 independent images would be 0.79" in line
    assert line.removeprefix("kora: warning: ") in record(tmp_path)["notes"]


def test_a_last_batch_below_4_is_left_out_and_this_is_said(
    cka: Cka, lora: Path, tmp_path: Path
) -> None:
    done = cka(lora, batch_size=7)  # 24 = 3 * 7 + 3
    assert "The last batch held 3 of the images" in done.out
    assert (record(tmp_path)["images"], record(tmp_path)["batches"]) == (21, 3)
    assert "left out" not in cka(lora, batch_size=10).out  # 24 = 2 * 10 + 4
    assert record(tmp_path)["images"] == 24


def test_one_batch_has_no_interval_and_this_is_said(cka: Cka, lora: Path, tmp_path: Path) -> None:
    done = cka(lora, batch_size=100)
    assert "one minibatch, so there are no intervals" in done.out
    assert record(tmp_path)["comparisons"]["run_vs_frozen"]["diagonal_low"] == [None] * 8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--images", "3"), "--images 3: the unbiased estimate needs 4 images a batch or more"),
        (("--batch_size", "3"), "--batch_size 3: the unbiased estimate needs 4 images"),
        (("--images", "25"), "--images 25: the test set of RUN holds 24 images"),
        (("--features", "max"), "invalid choice: 'max'"),
        (("--seed", "-1"), "--seed: -1, expected 0 or more"),
        (("--device", "abacus"), "--device abacus cannot be used here"),
    ],
)
def test_a_mistake_is_told_in_a_line_and_nothing_is_written(
    args: tuple[str, ...], message: str, lora: Path, tmp_path: Path, capfd: Capture
) -> None:
    done = kora(capfd, "cka", lora, "--out", tmp_path / "out", *args)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_or_not_finished_is_named(
    cka: Cka, lora: Path, tmp_path: Path
) -> None:
    assert "no such folder" in cka(tmp_path / "nowhere").err
    half = tmp_path / "half"
    half.mkdir()
    (half / "config.yaml").touch()
    assert "a run without results.json: it is still running" in cka(lora, half).err
    assert "RUN and RUN2 are both" in cka(lora, lora / "adapter").err


def test_a_run_without_its_config_has_no_data(cka: Cka, lora: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    for name in (
        "results.json",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ):
        (copied / name).parent.mkdir(parents=True, exist_ok=True)
        (copied / name).write_bytes((lora / name).read_bytes())
    done = cka(copied)
    assert done.code == 1
    assert f"{copied / 'config.yaml'} does not exist, so the data of this run are not" in done.err
    assert "data of this run" not in cka(lora, copied).err  # the images are those of RUN


def test_data_that_has_changed_since_the_run_is_warned_of(
    cka: Cka, lora: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "copied"
    for path in (p for p in lora.rglob("*") if p.is_file() and p.suffix != ".ckpt"):
        (copied / path.relative_to(lora)).parent.mkdir(parents=True, exist_ok=True)
        (copied / path.relative_to(lora)).write_bytes(path.read_bytes())
    config = yaml.safe_load((copied / "config.yaml").read_text(encoding="utf-8"))
    config["data"]["init_args"]["scene_seed"] = 99
    write_config(copied / "config.yaml", config)
    assert "the data have changed since" in cka(copied).err
    assert "have changed" not in cka(lora).err


@pytest.fixture(scope="module")
def without_cls(there: Path) -> Path:
    """A run on a backbone of two blocks whose tokens hold no CLS, and on other scenes."""
    tiny_in_file("tiny_siglip", there)
    backbone = {
        "name": "tiny_siglip",
        "weights": str(there / "tiny_siglip.safetensors"),
        "image_size": 32,
    }
    return fit(there, "siglip", backbone, "--data.scene_seed", "9")


def test_a_backbone_without_cls_names_mean(cka: Cka, without_cls: Path) -> None:
    done = cka(without_cls, "--features", "cls")
    assert done.code == 2
    assert "tiny_siglip has none. Use --features mean" in done.err
    assert cka(without_cls).code == 0


def test_runs_on_other_backbones_are_compared_with_a_frozen_one_each(
    cka: Cka, lora: Path, without_cls: Path, tmp_path: Path
) -> None:
    done = cka(lora, without_cls)
    assert done.code == 0, done.err
    assert "RUN2 is a run on other data; both are shown the test images of RUN" in done.err
    found = record(tmp_path)["comparisons"]
    assert {"run2_vs_frozen2", "within_frozen2", "within_frozen"} <= set(found)
    assert matrix(tmp_path, "run_vs_run2").shape == (8, 4)
    assert found["run_vs_run2"]["diagonal_low"] is None
    assert "their layers differ, so there is no diagonal" in done.out
    rows = [line for line in done.out.splitlines() if line.startswith("│ final")]
    assert len(rows) == 1  # of both, whatever their depth
    assert rows[0].count("0.") + rows[0].count("1.") >= 2


def test_a_depth_run_is_compared_by_the_level_that_its_head_reads(
    cka: Cka, lora: Path, there: Path, tmp_path: Path
) -> None:
    config = depth_config(runs_dir=str(there / "runs"))
    config["model"]["init_args"]["backbone"] = NANO
    main(["fit", "--config", str(write_config(there / "depth.yaml", config))])
    (results,) = (there / "runs" / "tiny_depth").rglob("results.json")
    done = cka(results.parent, lora)
    assert done.code == 0, done.err
    assert "other data" not in done.err  # the same images, with another target
    assert "run2_vs_frozen2" in record(tmp_path)["comparisons"]  # another final feature
    assert 0.5 < np.diag(matrix(tmp_path, "run_vs_frozen"))[-1] < 1 - 1e-7


def test_full_fine_tuning_is_compared_with_the_weights_that_it_started_from(
    cka: Cka, there: Path, tmp_path: Path
) -> None:
    full = fit(there, "full", NANO, adapter={"class_path": "kora.adapters.FullFineTune"})
    done = cka(full)
    assert done.code == 0, done.err
    assert record(tmp_path)["unchanged_layers"]["run"] == []


def test_frozen_weights_that_nobody_kept_are_named(cka: Cka, there: Path) -> None:
    lost = fit(there, "lost", {**NANO, "weights": "random"})
    done = cka(lost)
    assert done.code == 2
    assert "drew its frozen weights at random" in done.err
