"""`kora params --match` brings strategies to one number of trainable parameters."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest

from kora.adapters import LowRankFusion
from tests.support.cli import Outcome, kora, tiny_config, write_config
from tests.support.fusion_factory import bottleneck_sources, write_source

Capture = pytest.CaptureFixture[str]
#: Of LoRA on vit_nano, a unit of rank at qkv, proj, fc1 and fc2 of six blocks; at q and v.
ALL_SITES, Q_V = 6 * (512 + 256 + 640 + 640), 6 * 2 * 256


def adapter(class_path: str, **init_args: Any) -> dict[str, Any]:
    return {
        "model": {
            "init_args": {
                "adapter": {"class_path": f"kora.adapters.{class_path}", "init_args": init_args}
            }
        }
    }


V = {"class_path": "kora.adapters.PaperForm", "init_args": {"rank": 1, "sites": ["v"]}}


@pytest.fixture
def files(here: Path) -> Path:
    """tiny.yaml (LoRA, rank 2), fragments of other strategies, and an experiment of its own."""
    write_config(here / "lora_qv.yaml", adapter("LoRA", rank=5, sites=["q", "v"]))
    write_config(here / "kora_v.yaml", adapter("KoRA", d_comp=4, node_form=V))
    write_config(here / "probe.yaml", adapter("LinearProbe"))
    own = tiny_config(experiment="own", **adapter("LoRA", rank=7, alpha=2.0, sites=["q"]))
    own["model"]["class_path"] = "kora.tasks.ClassificationTask"
    own["model"]["init_args"]["backbone"] = {"name": "vit_tiny_patch16_224"}
    write_config(here / "own.yaml", own)
    write_config(here / "layer.yaml", {"trainer": {"max_epochs": 2}})
    return here


def rows(outcome: Outcome) -> list[tuple[Any, ...]]:
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert all(
        row["difference_percent"]
        == round(100 * (row["parameters"] - found["target"]) / found["target"], 2)
        for row in found["strategies"]
    )
    keys = ("config", "strategy", "argument", "configured", "size", "parameters")
    return [tuple(row[key] for key in keys) for row in found["strategies"]]


EXPECTED = [
    ("tiny.yaml", "LoRA", "rank", 2, 2, 2 * ALL_SITES),
    ("lora_qv.yaml", "LoRA-qv", "rank", 5, 8, 8 * Q_V),
    ("probe.yaml", "LinearProbe", None, None, None, 0),
]


def test_each_config_after_the_first_is_matched_to_the_first(files: Path, capfd: Capture) -> None:
    configs = ("--config", "tiny.yaml", "--config", "lora_qv.yaml", "--config", "probe.yaml")
    assert rows(kora(capfd, "params", *configs, "--match", "--json")) == EXPECTED


def test_with_files_behind_match_the_configs_are_layers(files: Path, capfd: Capture) -> None:
    configs = ("--config", "tiny.yaml", "--config", "layer.yaml")
    outcome = kora(capfd, "params", *configs, "--match", "lora_qv.yaml", "probe.yaml", "--json")
    assert [row[1:] for row in rows(outcome)] == [row[1:] for row in EXPECTED]


def test_of_a_complete_experiment_the_adapter_alone_is_taken(files: Path, capfd: Capture) -> None:
    configs = ("--config", "tiny.yaml", "--config", "own.yaml")
    outcome = kora(capfd, "params", *configs, "--match", "--json")
    assert json.loads(outcome.out)["backbone"] == "vit_nano"
    assert rows(outcome)[1] == ("own.yaml", "LoRA-q", "rank", 7, 16, 6 * 256 * 16)


def test_target_sets_another_number(files: Path, capfd: Capture) -> None:
    args = ("params", "--config", "tiny.yaml", "--match", "--json", "--target", str(5 * ALL_SITES))
    assert rows(kora(capfd, *args)) == [("tiny.yaml", "LoRA", "rank", 2, 5, 5 * ALL_SITES)]


def test_further_options_are_those_of_the_experiment(files: Path, capfd: Capture) -> None:
    configs = ("--config", "tiny.yaml", "--config", "lora_qv.yaml")
    options = ("--model.adapter.rank", "1", "--model.backbone.name", "vit_tiny_patch16_224")
    found = rows(kora(capfd, "params", *configs, "--match", "--json", *options))
    per_rank = 12 * (4 * 192 + 2 * 192 + 2 * 5 * 192)
    assert found[0][4:] == (1, per_rank)
    assert found[1][4:] == (4, per_rank)


def test_the_number_is_that_of_kora_params_without_the_head(files: Path, capfd: Capture) -> None:
    configs = ("--config", "tiny.yaml", "--config", "kora_v.yaml")
    size, parameters = rows(kora(capfd, "params", *configs, "--match", "--json"))[1][4:]
    args = ("params", *configs, "--json", "--model.adapter.node_form.rank", str(size))
    counted = json.loads(kora(capfd, *args).out)
    assert counted["trainable"] - counted["head"] == parameters


def test_a_width_that_follows_the_number_of_classes_is_that_of_kora_params(
    files: Path, capfd: Capture
) -> None:
    logits = {"class_path": "kora.adapters.LogitReadout"}
    free = adapter("KoRA", d_comp=None, node_form=V, readout=logits, composer="Sum")
    write_config(files / "free.yaml", free)
    layers = ("params", "--config", "tiny.yaml", "--config", "free.yaml", "--json")
    many = ("--model.num_classes", "100")
    counted = json.loads(kora(capfd, *layers, *many).out)
    matched = json.loads(kora(capfd, *layers, *many, "--match", "lora_qv.yaml").out)
    assert matched["target"] == counted["trainable"] - counted["head"]


def test_the_table_shows_sizes_counts_and_what_does_not_come_near(
    files: Path, capfd: Capture
) -> None:
    names = ("lora_qv.yaml", "probe.yaml", "kora_v.yaml")
    out = kora(capfd, "params", "--config", "tiny.yaml", "--match", *names, "--target", "3100").out
    shown = out.splitlines()  # the config stands below the numbers of its strategy
    lines = {below.strip(): line for line, below in itertools.pairwise(shown)}
    assert "Nearest to 3,100 trainable parameters without the head, on vit_nano" in out
    assert "rank 1" in lines["lora_qv.yaml"]
    assert f"{Q_V:,}" in lines["lora_qv.yaml"]
    assert "-0.90 %" in lines["lora_qv.yaml"]
    assert "fixed" in lines["probe.yaml"]
    text = " ".join(out.split())
    assert "KoRA (kora_v.yaml): no node_form.rank comes within 5 %" in text
    assert "(lora_qv.yaml): no rank" not in text


#: Of a low-rank fusion at both branches of two blocks: a unit of rank, and what it has without.
FUSION_RANK, FUSION_REST = 4 * (4 * 128 + 2), 4 * 128


@pytest.fixture
def fusions(files: Path) -> Path:
    """full.yaml and low.yaml, fusions of adapters of another vit_nano than the experiment has."""
    sources = list(bottleneck_sources())
    write_config(files / "full.yaml", adapter("AdapterFusion", sources=sources))
    write_config(files / "low.yaml", adapter("LowRankFusion", sources=sources, rank=2))
    return files


def test_a_low_rank_fusion_is_matched_and_a_full_one_has_one_size(
    fusions: Path, capfd: Capture
) -> None:
    args = ("params", "--config", "tiny.yaml", "--match", "low.yaml", "full.yaml")
    _, low, full = rows(kora(capfd, *args, "--json"))
    assert low == (
        "low.yaml", "LowRankFusion", "rank", 2, 12, 12 * FUSION_RANK + FUSION_REST
    )  # fmt: skip
    assert full == ("full.yaml", "AdapterFusion", None, None, None, 4 * (3 * 128**2 + 2 * 128))
    text = " ".join(kora(capfd, *args).out.split())
    assert "AdapterFusion (full.yaml): no rank or width makes it larger or smaller" in text
    assert "LowRankFusion (low.yaml)" not in text


def test_the_number_of_a_fusion_is_that_of_kora_params(fusions: Path, capfd: Capture) -> None:
    for name, parameters in (("low", 2 * FUSION_RANK + FUSION_REST), ("full", 197_632)):
        args = ("params", "--config", "tiny.yaml", "--config", f"{name}.yaml", "--json")
        outcome = kora(capfd, *args)
        assert outcome.code == 0, outcome.err
        counted = json.loads(outcome.out)
        assert counted["trainable"] - counted["head"] == parameters


def test_a_fusion_whose_sources_are_gone_is_counted_from_its_own_folder(
    fusions: Path, tmp_path: Path, capfd: Capture
) -> None:
    fusion = LowRankFusion(bottleneck_sources(), rank=2)
    folder = write_source(tmp_path / "fusion", fusion)
    write_config(fusions / "low.yaml", adapter("LowRankFusion", sources=["a", "b"], rank=2))
    args = ("params", "--config", "tiny.yaml", "--config", "low.yaml")
    message = "sources: a, b are no adapter folders"
    for outcome in (kora(capfd, *args), kora(capfd, *args, "--match")):
        assert outcome.code == 1
        assert len(outcome.err.splitlines()) == 1
        assert message in outcome.err
    with pytest.warns(UserWarning, match="no adapter at a, b; those"):
        outcome = kora(capfd, *args, "--json", "--model.adapter_from", folder)
    assert json.loads(outcome.out)["trainable"] - json.loads(outcome.out)["head"] == (
        2 * FUSION_RANK + FUSION_REST
    )


def test_sources_of_another_backbone_are_refused_when_they_are_counted(
    fusions: Path, capfd: Capture
) -> None:
    other = ("--model.backbone.name", "vit_tiny_patch16_224")
    outcome = kora(capfd, "params", "--config", "tiny.yaml", "--match", "low.yaml", *other)
    assert outcome.code == 2
    assert "was trained on 'vit_nano'" in outcome.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--config", "tiny.yaml", "--target", "5"), "--target.*Add --match"),
        (("--config", "tiny.yaml", "--match"), "tiny.yaml alone has nothing to be matched to"),
        (("--config", "tiny.yaml", "--match", "--target", "0"), "--target 0: expected a number"),
        (("--config", "probe.yaml", "--match", "lora_qv.yaml"), "no model.class_path.*quickstart"),
        (("--config", "tiny.yaml", "--match", "layer.yaml"), "layer.yaml sets no model.adapter"),
        (("--config", "tiny.yaml", "--match", "none.yaml"), "none.yaml does not exist"),
        (("--config", "none.yaml", "--match", "probe.yaml"), "none.yaml: there is no such file"),
        (
            ("--config", "tiny.yaml", "--match", "broken.yaml"),
            "broken.yaml: cannot be read",
        ),
        (("--config", "tiny.yaml", "--match", "list.yaml"), "list.yaml is no config"),
        (
            ("--config", "tiny.yaml", "--config", "probe.yaml", "--match", "lora_qv.yaml"),
            "LinearProbe of tiny.yaml . probe.yaml trains nothing but the head.*--target N",
        ),
        (
            ("--config", "tiny.yaml", "--match", "lora_qv.yaml", "--model.adapter.rnk", "3"),
            "Did you mean 'rank'",
        ),
    ],
)
def test_a_mistake_is_one_clear_error(
    args: tuple[str, ...], message: str, files: Path, capfd: Capture
) -> None:
    (files / "broken.yaml").write_text("model: [", encoding="utf-8")
    (files / "list.yaml").write_text("- model", encoding="utf-8")
    outcome = kora(capfd, "params", *args)
    assert outcome.code == 2
    assert outcome.out == ""

    assert re.search(message, " ".join(outcome.err.split())), outcome.err
