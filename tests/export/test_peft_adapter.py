"""Claims about `--format peft`: Hugging Face's peft loads it and gives the same logits to 1e-5."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import kora
from kora.adapters import BitFit, DoRA, KoRA, LoRA, PaperForm, Strategy
from kora.backbone.vit import Backbone
from kora.export.command import export
from kora.tasks.load import AdaptedModel
from tests.support.adapter_factory import kicked, tiny_in_file, write_folder
from tests.support.exports import run_lines
from tests.support.families import DEAD_QKV, TINY

pytestmark = pytest.mark.skipif(find_spec("peft") is None, reason="a development dependency")

SETTINGS = {
    "all": {"rank": 3, "alpha": 0.5},
    "rows of q and v": {"rank": 2, "alpha": 0.7, "sites": ["q", "v"]},
    "rows beside whole layers": {"rank": 2, "alpha": 2.0, "sites": ["v", "q", "proj", "fc1"]},
    "one block, dropout": {"rank": 2, "sites": ["qkv"], "blocks": [1], "dropout": 0.3},
}


def loaded(folder: Path, adapter: Strategy) -> AdaptedModel:
    return kora.load_adapter(write_folder(folder, kicked(adapter)))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("kind", [LoRA, DoRA])
def test_peft_loads_it_over_the_plain_model_and_gives_the_same_logits(
    kind: type[LoRA], settings: dict[str, object], tmp_path: Path, images: Tensor
) -> None:
    model = loaded(tmp_path / "adapter", kind(**settings))
    written = export(model, "peft", tmp_path / "out")
    assert written.difference is not None
    assert written.difference < 1e-5
    theirs = run_lines(tmp_path / "out")
    with torch.no_grad():
        found = theirs(model.backbone.preprocess(images))
        frozen = theirs.get_base_model()
        with theirs.disable_adapter():
            without = frozen(model.backbone.preprocess(images))
    torch.testing.assert_close(found, model(images), rtol=0, atol=1e-5)
    assert (found - without).abs().max() > 1e-2, "the adapter does something"


def test_its_lines_resample_positions_where_the_images_have_another_size(tmp_path: Path) -> None:
    task = kicked(LoRA(2), Backbone("vit_nano", image_size=80))
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task))
    export(model, "peft", tmp_path / "out")
    images = torch.randint(0, 256, (2, 3, 80, 80), dtype=torch.uint8)
    with torch.no_grad():
        found = run_lines(tmp_path / "out")(model.backbone.preprocess(images))
        torch.testing.assert_close(found, model(images), rtol=0, atol=1e-5)


def test_its_lines_name_the_weights_of_the_run_not_those_of_the_package(
    tmp_path: Path, images: Tensor
) -> None:
    state = {name: 1.1 * value for name, value in Backbone("vit_nano").model.state_dict().items()}
    save_file(state, tmp_path / "own.safetensors")
    task = kicked(LoRA(2), Backbone("vit_nano", weights=str(tmp_path / "own.safetensors")))
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task))
    export(model, "peft", tmp_path / "out")
    with torch.no_grad():
        found = run_lines(tmp_path / "out")(model.backbone.preprocess(images))
        torch.testing.assert_close(found, model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", TINY)
def test_every_family_can_be_exported(family: str, tmp_path: Path) -> None:
    sites = ["proj", "fc2"] if family in DEAD_QKV else ["q", "v", "fc2"]
    task = kicked(LoRA(2, sites=sites), tiny_in_file(family, tmp_path))
    model = kora.load_adapter(write_folder(tmp_path / "adapter", task))
    written = export(model, "peft", tmp_path / "out")
    assert written.difference is not None
    assert written.difference < 1e-5


def test_alpha_of_peft_is_ours_times_the_rank_also_where_two_sites_share_a_layer(
    tmp_path: Path,
) -> None:
    model = loaded(tmp_path / "adapter", LoRA(2, 0.5, sites=["q", "v", "proj"], blocks=[0]))
    export(model, "peft", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 1.0)
    assert config["rank_pattern"] == {"blocks.0.attn.qkv": 4}
    assert config["alpha_pattern"] == {"blocks.0.attn.qkv": 2.0}
    assert config["modules_to_save"] == ["head"]
    state = load_file(tmp_path / "out" / "adapter_model.safetensors")
    up = state["base_model.model.blocks.0.attn.qkv.lora_B.weight"]
    assert up.shape == (384, 4)
    assert not up[128:256].any(), "the rows of k are left alone"


def test_training_it_further_starts_where_the_run_ended(tmp_path: Path, images: Tensor) -> None:
    from peft import PeftModel

    model = loaded(tmp_path / "adapter", LoRA(2))
    export(model, "peft", tmp_path / "out")
    base = model.backbone.plain_model(7)
    base.load_state_dict(
        {k.replace(".base.", "."): v for k, v in model.backbone.model.state_dict().items()},
        strict=False,
    )
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "out"), is_trainable=True)
    trains = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert trains == sum(p.numel() for _, p in model.adapter.trainable()) + 7 * 129
    with torch.no_grad():
        found = theirs.eval()(model.backbone.preprocess(images))
        torch.testing.assert_close(found, model(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("adapter", [KoRA(PaperForm(2), 4), BitFit()], ids=lambda a: a.label)
def test_what_peft_has_no_counterpart_for_is_refused(adapter: Strategy, tmp_path: Path) -> None:
    model = loaded(tmp_path / "adapter", adapter)
    with pytest.raises(ValueError, match="has no counterpart there"):
        export(model, "peft", tmp_path / "out")
