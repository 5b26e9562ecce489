"""kora inspect reads what the adapter of a run has become."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Outcome, fit_in, kora, tiny_config, write_config
from tests.support.fusion_factory import table

pytestmark = pytest.mark.runs

Capture = pytest.CaptureFixture[str]


def kora_of(**options: Any) -> dict[str, Any]:
    """The arguments of a small KoRA, whose nodes have these."""
    return {
        "node_form": {"class_path": "PaperForm", "init_args": {"rank": 2, **options}},
        "d_comp": 4,
        "readout": {"class_path": "ClsReadout", "init_args": {"init": "default"}},
    }


PLACES = [(str(i), site) for i in range(6) for site in ("qkv", "proj", "fc1", "fc2")]


def config(name: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
    made = tiny_config()
    adapter = {"class_path": f"kora.adapters.{name}", "init_args": arguments or {}}
    made["model"]["init_args"]["adapter"] = adapter
    # Weights that can be loaded again.
    made["model"]["init_args"]["backbone"] = {"name": "vit_nano", "image_size": 32}
    return made


def trained(folder: Path, capfd: Capture, made: dict[str, Any]) -> Path:
    """The folder of a run of this config."""
    outcome = kora(capfd, "fit", "--config", write_config(folder / "run.yaml", made))
    assert outcome.code == 0, outcome.err
    (results,) = (folder / "runs/tiny").glob("*/seed0/version_0/results.json")
    return results.parent


@pytest.fixture(scope="module")
def injected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of injected KoRA."""
    folder = tmp_path_factory.mktemp("injected")
    return fit_in(folder, "--config", write_config(folder / "run.yaml", config("KoRA", kora_of())))


@pytest.fixture
def run(injected: Path, here: Path) -> Path:
    """A copy of that run, in the working directory."""
    shutil.copytree(injected, here, dirs_exist_ok=True)
    return here / "runs/tiny/KoRA/seed0/version_0"


def inspected(capfd: Capture, run: Path, *args: str) -> tuple[dict[str, Any], Outcome]:
    """inspect.json, with the values of each quantity by place."""
    outcome = kora(capfd, "inspect", run, *args)
    assert outcome.code == 0, outcome.err
    record = json.loads((run / "inspect/inspect.json").read_text(encoding="utf-8"))
    record["values"] = {
        one["name"]: {(place["block"], place["site"]): place["value"] for place in one["places"]}
        for one in record["quantities"]
    }
    return record, outcome


@pytest.mark.parametrize("inject", [True, False])
def test_a_composition_is_read_node_by_node(
    run: Path, here: Path, capfd: Capture, inject: bool
) -> None:
    if not inject:
        shutil.rmtree(here / "runs")
        run = trained(here, capfd, config("KoRA", kora_of(inject=False)))
    record, outcome = inspected(capfd, run, "--images", "10", "--batch_size", "4")
    assert record["images"] == 10
    assert record["split"] == "test"
    names = ["contribution", "vector_norm", "singular_value"]
    names += ["update_norm", "update_share", "update_singular_value"] * inject
    assert list(record["values"]) == [*names, "gradient_step_1", "gradient_last"]
    for name, values in record["values"].items():
        assert list(values) == PLACES, name
    contribution = record["values"]["contribution"]
    assert contribution["5", "fc2"] > 1e-4 > 1e-9 > contribution["0", "qkv"]
    kept = json.loads((run / "node_gradients.json").read_text())["readings"]
    assert [reading["step"] for reading in kept] == [1, 2]
    assert record["values"]["gradient_last"]["5", "fc2"] == kept[-1]["nodes"]["b05_fc2"]
    assert record["scalars"]["gradient_step_1_composed"] == kept[0]["composed"]
    assert all(one["definition"].endswith(".") for one in record["quantities"])
    with (run / "inspect/inspect.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["block"], row["site"]) for row in rows] == PLACES
    assert float(rows[-1]["contribution"]) == pytest.approx(contribution["5", "fc2"], rel=1e-5)
    assert float(rows[-1]["singular_value_2"]) > 0
    for picture in ("inspect.png", "singular_values.png"):
        assert (run / "inspect" / picture).read_bytes()[:4] == b"\x89PNG"
    assert "of 24 nodes have less than a millionth" in outcome.out
    assert "redundancy, mean |cos(p_i, p_j)|: 0." in outcome.out
    assert f"{kept[0]['redundancy']:.2f} at step 1" in outcome.out


@pytest.mark.slow
def test_without_a_record_the_gradient_is_measured_and_that_is_said(
    here: Path, capfd: Capture
) -> None:
    made = config("KoRA", kora_of())
    made["model"]["init_args"]["label_smoothing"] = 0.5
    made["trainer"] |= {"max_steps": 4, "max_epochs": -1}
    made["model"]["init_args"]["optimizer"] = {
        "class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-6},
    }  # fmt: skip
    run = trained(here, capfd, made)
    kept, _ = inspected(capfd, run)
    (run / "node_gradients.json").unlink()
    record, outcome = inspected(capfd, run, "--batch_size", "36")
    assert "was measured with the final weights on 36 training images" in outcome.out
    assert record["notes"]
    assert "gradient_last" not in record["values"]
    measured = record["values"]["gradient_final_weights"]
    # Nearly the same weights and the same loss, on other images.
    for site in ("fc1", "fc2"):
        last = kept["values"]["gradient_last"]["5", site]
        assert measured["5", site] == pytest.approx(last, rel=0.3)


def test_a_damaged_record_of_gradients_is_told(run: Path, capfd: Capture) -> None:
    path = run / "node_gradients.json"
    path.write_bytes(path.read_bytes()[:100])
    outcome = kora(capfd, "inspect", run)
    assert outcome.code == 1
    assert "node_gradients.json is damaged" in outcome.err
    assert not (run / "inspect").exists()


def test_data_that_has_changed_is_refused(run: Path, capfd: Capture) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("test_images: 24", "test_images: 30"))
    outcome = kora(capfd, "inspect", run)
    assert outcome.code == 2
    assert "The data is not that of the run" in outcome.err
    (run / "config.yaml").unlink()
    outcome = kora(capfd, "inspect", run)
    assert outcome.code == 1
    assert "config.yaml does not exist" in outcome.err


def test_the_validation_images_can_pass_too_and_out_is_another_folder(
    run: Path, capfd: Capture
) -> None:
    outcome = kora(capfd, "inspect", run / "adapter", "--split", "val", "--out", "elsewhere")
    assert outcome.code == 0, outcome.err
    record = json.loads(Path("elsewhere/inspect.json").read_text())
    assert (record["split"], record["images"]) == ("val", 12)
    assert not (run / "inspect").exists()


def test_an_out_that_is_a_file_is_refused_before_images_are_read(run: Path, capfd: Capture) -> None:
    Path("notes.txt").write_text("")
    outcome = kora(capfd, "inspect", run, "--out", "notes.txt")
    assert outcome.code == 2
    assert outcome.err.strip() == "kora: error: --out notes.txt is a file; name a folder."


def test_updates_are_read_from_weights_alone(here: Path, capfd: Capture) -> None:
    run = trained(here, capfd, config("DoRA", {"rank": 2, "sites": ["q", "k", "v", "proj"]}))
    (run / "config.yaml").unlink()  # no image is needed
    record, _ = inspected(capfd, run)
    assert record["images"] == 0
    assert list(record["values"]) == [
        "update_norm", "update_share", "update_singular_value", "length_share", "change_share",
    ]  # fmt: skip
    assert list(record["values"]["update_norm"])[:4] == [("0", s) for s in ("q", "k", "v", "proj")]


@pytest.mark.parametrize(
    ("name", "quantity"),
    [("Bottleneck", "added_share"), ("VPT", "prompt_share"), ("SSF", "scale_rms"),
     ("BitFit", "bias_share")],
)  # fmt: skip
def test_other_strategies_have_norms_of_their_change(
    here: Path, capfd: Capture, name: str, quantity: str
) -> None:
    run = trained(here, capfd, config(name))
    record, _ = inspected(capfd, run, "--images", "6")
    values = record["values"][quantity]
    assert {block for block, _ in values} >= set("012345")
    assert max(value or 0 for value in values.values()) > 0
    assert (run / "inspect/inspect.png").is_file()


@pytest.mark.parametrize("name", ["LinearProbe", "FullFineTune"])
def test_a_strategy_without_read_outs_is_refused(here: Path, capfd: Capture, name: str) -> None:
    run = trained(here, capfd, config(name))
    outcome = kora(capfd, "inspect", run)
    assert outcome.code == 2
    (line,) = [line for line in outcome.err.splitlines() if line.startswith("kora: error")]
    assert f"There is nothing to read out of {name}" in line
    assert "KoRA, LoRA, AdapterFusion" in line


def test_a_folder_that_is_no_run_is_told(here: Path, capfd: Capture) -> None:
    outcome = kora(capfd, "inspect", here)
    assert outcome.code == 1
    assert "is no adapter folder" in outcome.err


@pytest.mark.slow
def test_the_attention_is_that_which_the_run_has_shown(here: Path, capfd: Capture) -> None:
    for style in ("paint", "studio"):
        made = config("Bottleneck", {"rank": 2})
        made["experiment"], made["data"]["init_args"]["style"] = style, style
        write_config(here / f"{style}.yaml", made)
    run = trained(here, capfd, config("AdapterFusion", {"sources": ["paint.yaml", "studio.yaml"]}))
    for style in ("paint", "studio"):
        (here / f"{style}.yaml").unlink()
        shutil.rmtree(here / "runs" / style)
    record, _ = inspected(capfd, run)
    shown, read = table(run), table(run / "inspect")
    for ours, theirs in zip(read, shown, strict=True):
        share = float(theirs["paint/Bottleneck"])
        assert float(ours["paint/Bottleneck"]) == pytest.approx(share, abs=1e-5)
        assert record["values"]["attention_0"][ours["block"], "mlp"] == pytest.approx(share, 1e-4)
    assert (run / "inspect/fusion_attention.png").is_file()
