"""An adapter goes to the hub and comes back as the same model; nothing else goes, or comes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import kora as package
from kora.adapters import AdapterFusion, LoRA
from kora.export.hub import push
from kora.runs.adapter_config import read_adapter_config
from tests.support.adapter_factory import kicked, tiny_in_file, write_folder
from tests.support.cli import kora
from tests.support.fusion_factory import write_source
from tests.support.hub_server import Hub, serving_hub

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty one, with a cache of one's own and a token that it takes."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE",
                        str(tmp_path / "cache"))  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", "secret")
    with serving_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An adapter folder on weights that lie in a file of this machine."""
    return write_folder(
        tmp_path / "run/adapter", kicked(LoRA(2), tiny_in_file("tiny_vit", tmp_path))
    )


def test_a_pushed_adapter_is_the_same_model(hub: Hub, folder: Path, capfd: Capture) -> None:
    told = kora(capfd, "push", folder, "me/cats", "--license", "apache-2.0")
    assert told.code == 0, told.err
    assert told.out == f'kora: {hub.url}/me/cats: kora.load_adapter("hf://me/cats")\n'
    assert set(hub.files["me/cats"]) == {
        "adapter_config.json", "adapter_model.safetensors", "README.md",
    }  # fmt: skip
    weights = read_adapter_config(folder)["weights"]["source"]
    here = package.load_adapter(folder)
    there = package.load_adapter("hf://me/cats", weights=weights)
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    assert torch.equal(here(images), there(images))


def test_no_path_of_this_machine_goes_along(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, "me/cats")
    for name, content in hub.files["me/cats"].items():
        assert str(tmp_path).encode() not in content, name


def test_a_fusion_goes_without_the_folders_of_its_sources_which_it_holds(
    hub: Hub, tmp_path: Path
) -> None:
    frozen = partial(tiny_in_file, "tiny_vit", tmp_path)
    lora = partial(LoRA, sites=["fc2"])
    sources = [write_source(tmp_path / f"of {k}", lora(k), backbone=frozen()) for k in (2, 3)]
    folder = write_folder(tmp_path / "run/adapter", kicked(AdapterFusion(sources), frozen()))
    push(folder, "me/fusion")
    for name, content in hub.files["me/fusion"].items():
        assert str(tmp_path).encode() not in content, name
    weights = read_adapter_config(folder)["weights"]["source"]
    images = torch.randint(0, 256, (3, 3, 40, 50), dtype=torch.uint8)
    here = package.load_adapter(folder)(images)
    for source in sources:
        shutil.rmtree(source)
    assert torch.equal(package.load_adapter("hf://me/fusion", weights=weights)(images), here)


def test_the_card_has_what_the_hub_reads(hub: Hub, folder: Path, capfd: Capture) -> None:
    assert kora(capfd, "push", folder, "me/cats", "--license", "mit", "--private").code == 0
    assert hub.private["me/cats"]
    card = hub.files["me/cats"]["README.md"].decode()
    _, head, text = card.split("---\n", 2)
    found = yaml.safe_load(head)
    assert found["license"] == "mit"
    assert found["library_name"] == "kora"
    assert found["pipeline_tag"] == "image-classification"
    assert found["metrics"] == ["accuracy"]
    assert {"kora", "timm", "adapter"} <= set(found["tags"])
    assert 'kora.load_adapter("hf://me/cats")' in text
    assert 'model.predict("photo.jpg")' in text
    assert "## Intended use" in text


def test_a_revision_may_be_named_and_what_is_there_is_not_fetched_again(
    hub: Hub, folder: Path, capfd: Capture
) -> None:
    assert kora(capfd, "push", folder, "me/cats").code == 0
    weights = read_adapter_config(folder)["weights"]["source"]
    package.load_adapter(f"hf://me/cats@{hub.sha('me/cats')}", weights=weights)
    hub.asked.clear()
    package.load_adapter("hf://me/cats", weights=weights)
    assert not [asked for asked in hub.asked if asked.startswith("GET /me/cats/resolve")]


def test_only_files_of_an_adapter_are_fetched(hub: Hub, folder: Path, capfd: Capture) -> None:
    assert kora(capfd, "push", folder, "me/cats").code == 0
    hub.files["me/cats"]["modeling.py"] = b"raise SystemExit"
    hub.files["me/cats"]["pytorch_model.bin"] = b"\x80"
    package.load_adapter("hf://me/cats", weights=read_adapter_config(folder)["weights"]["source"])
    assert not [asked for asked in hub.asked if "modeling" in asked or ".bin" in asked]


def test_no_file_that_is_linked_as_weights_goes_along(
    hub: Hub, folder: Path, capfd: Capture, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(b"PRIVATE")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to(tmp_path / "key")
    told = kora(capfd, "push", folder, "me/cats")
    assert told.code == 1
    assert "cannot be read: they are damaged" in told.err
    assert not hub.asked


def test_what_fails_is_told_in_one_line(
    hub: Hub, folder: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = kora(capfd, "push", folder, "cats")
    assert (told.code, "cats is no repository of the hub; expected OWNER/NAME" in told.err) == (
        2,
        True,
    )
    told = kora(capfd, "push", tmp_path / "none", "me/cats")
    assert "no adapter folder" in told.err
    assert not hub.asked
    hub.status = 403
    told = kora(capfd, "push", folder, "me/cats")
    assert told.code == 1
    assert told.err.startswith("kora: error: me/cats cannot be pushed: 403")
    assert "that the token (HF_TOKEN) may write there." in told.err
    hub.status = 0
    with pytest.raises(RuntimeError, match="hf://me/dogs cannot be fetched: 404"):
        package.load_adapter("hf://me/dogs")
    hub.files["me/empty"] = {"README.md": b"nothing"}
    with pytest.raises(ValueError, match="hf://me/empty holds no adapter of kora"):
        package.load_adapter("hf://me/empty")
    with pytest.raises(ValueError, match="expected OWNER/NAME"):
        package.load_adapter("hf://cats")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    told = kora(capfd, "push", folder, "me/cats")
    assert told.code == 2
    assert "There is no token of the hub. Set HF_TOKEN" in told.err
