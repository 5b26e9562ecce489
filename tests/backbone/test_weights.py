"""Claims about where weights come from: local files, the hub, and no network."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from kora.adapters import LoRA
from kora.backbone.vit import Backbone
from kora.backbone.weights import is_reachable, matrices_on_disk, without_numbers
from tests.support.factory import built, nano
from tests.support.families import TINY


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a vit_tiny at 32 pixels, with its classifier, as timm's own state dict."""
    torch.manual_seed(5)
    model = timm.create_model("vit_tiny_patch16_224", img_size=32)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(model.state_dict(), path)
    return path


def load(path: Path | str, name: str = "vit_tiny_patch16_224", size: int = 32) -> Backbone:
    return Backbone(name, weights=str(path), image_size=size)


def test_a_file_is_loaded_to_the_bit_and_its_classifier_left_out(tiny_file: Path) -> None:
    state, stored = load(tiny_file).model.state_dict(), load_file(tiny_file)
    assert stored.keys() - state.keys() == {"head.weight", "head.bias"}
    assert all(torch.equal(state[key], stored[key]) for key in state)


@pytest.mark.parametrize("name", sorted(TINY))
def test_matrices_left_on_disk_make_the_same_backbone(name: str, tmp_path: Path) -> None:
    size = TINY[name][1]
    path = tmp_path / "weights.safetensors"
    save_file(Backbone(name, weights="random", image_size=size).model.state_dict(), path)
    usual = load(path, name, size)
    with matrices_on_disk():
        mapped = load(path, name, size)
    for kind in ("named_parameters", "named_buffers"):
        pairs = zip(getattr(usual, kind)(), getattr(mapped, kind)(), strict=True)
        for (key, a), (other, b) in pairs:
            assert key == other
            assert torch.equal(a, b), key
    images = torch.rand(2, 3, size, size)
    assert torch.equal(usual(images).pooled, mapped(images).pooled)


class Computed(TorchDispatchMode):
    """The names of all that is computed inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_model_without_numbers_has_the_same_sizes_and_draws_nothing(name: str) -> None:
    with Computed() as drawn, torch.device("meta"):
        usual = timm.create_model(name).state_dict()
    with Computed() as computed, without_numbers():
        found = timm.create_model(name).state_dict()
    assert {key: t.shape for key, t in found.items()} == {key: t.shape for key, t in usual.items()}
    assert all(tensor.is_meta for tensor in found.values())
    draws = {"uniform_.default", "normal_.default", "erfinv_.default"}
    assert draws.intersection(drawn.names)
    assert not draws.intersection(computed.names)


def test_the_classifier_of_a_file_is_loaded_where_it_is_kept(tiny_file: Path) -> None:
    backbone = Backbone(
        "vit_tiny_patch16_224", weights=str(tiny_file), image_size=32, keep_classifier=True
    )
    assert torch.equal(backbone.model.head.weight, load_file(tiny_file)["head.weight"])


def test_position_embeddings_are_resampled_to_another_size(tiny_file: Path) -> None:
    backbone = load(tiny_file, size=64)
    stored = load_file(tiny_file)
    assert backbone.model.pos_embed.shape == (1, 17, 192)
    assert torch.equal(backbone.model.pos_embed[:, 0], stored["pos_embed"][:, 0])
    assert torch.equal(backbone.model.blocks[3].mlp.fc1.weight, stored["blocks.3.mlp.fc1.weight"])


def test_environment_variables_and_home_in_the_path_are_expanded(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTS_FOLDER", str(tiny_file.parent))
    monkeypatch.setenv("HOME", str(tiny_file.parent))
    expected = load(tiny_file).sha256
    assert load("${WEIGHTS_FOLDER}/tiny.safetensors").sha256 == expected
    assert load("~/tiny.safetensors").sha256 == expected


def test_an_unset_environment_variable_is_named() -> None:
    with pytest.raises(ValueError, match=r"variable that is not set: \$NO_SUCH_FOLDER/a.safete"):
        load("$NO_SUCH_FOLDER/a.safetensors")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors does not exist"):
        load(tmp_path / "nothing.safetensors")


def test_a_pickled_checkpoint_is_not_read(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save(Bomb(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"model\.pth is not a \.safetensors file.*convert it"):
        load(tmp_path / "model.pth")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("keep", [0, 4, 2000, -1])
def test_a_truncated_file_is_named(keep: int, tiny_file: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_file.read_bytes()[:keep])
    with pytest.raises(RuntimeError, match=r"cut\.safetensors is damaged or truncated.*again"):
        load(cut)


@pytest.mark.parametrize(
    ("name", "size"),
    [("deit3_small_patch16_224", 32), ("eva02_tiny_patch14_224", 56), ("vit_nano", 64)],
)
def test_weights_of_another_architecture_are_refused(name: str, size: int, tiny_file: Path) -> None:
    with pytest.raises(ValueError, match=rf"tiny\.safetensors does not belong to '{name}': .*name"):
        load(tiny_file, name, size)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.2.norm1.bias"), r"'blocks\.2\.norm1\.bias' is missing"),
        (lambda s: s.update(extra=torch.zeros(1)), r"'extra' is unknown"),
        (lambda s: s.update({"norm.bias": torch.zeros(3)}), r"'norm\.bias' has shape \(3,\), exp"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_a_file_that_differs_in_one_tensor_is_refused(
    change: object, message: str, tiny_file: Path, tmp_path: Path
) -> None:
    state = load_file(tiny_file)
    assert callable(change)
    change(state)
    save_file(state, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "changed.safetensors")


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(4, 3, 7, 7)}, tmp_path / "resnet.safetensors")
    for name in ("vit_tiny_patch16_224", "eva02_tiny_patch14_224"):
        with pytest.raises(ValueError, match=rf"resnet\.safetensors does not belong to '{name}'"):
            Backbone(name, weights=str(tmp_path / "resnet.safetensors"))


def test_a_model_without_published_weights_is_told_so() -> None:
    with pytest.raises(ValueError, match=r"timm has no pretrained weights for.*or 'random'"):
        Backbone("vit_small_patch16_36x1_224")


# -- identity of the weights ----------------------------------------------------------------------


def test_the_hash_stays_when_sites_are_wrapped_and_changes_with_one_number() -> None:
    plain, wrapped, changed = nano(), nano(), nano()
    built(LoRA(), backbone=wrapped)
    assert wrapped.sha256 == plain.sha256
    with torch.no_grad():
        changed.model.blocks[2].mlp.fc1.weight[3, 4] += 1e-6
    assert changed.sha256 != plain.sha256


def test_the_hash_does_not_depend_on_the_storage_type_of_equal_numbers(tmp_path: Path) -> None:
    half = {k: v.half() for k, v in nano().model.state_dict().items()}
    save_file(half, tmp_path / "half.safetensors")
    save_file({k: v.float() for k, v in half.items()}, tmp_path / "float.safetensors")
    one, other = (load(tmp_path / f"{n}.safetensors", "vit_nano", 64) for n in ("half", "float"))
    assert one.sha256 == other.sha256 != nano().sha256


# -- real weights ---------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_the_real_vit_s14_is_loaded_exactly(shared_data: Path, images: Tensor) -> None:
    path = shared_data / "vit_s14_70_ti100.safetensors"
    backbone = Backbone("vit_small_patch14_dinov2", weights=str(path), image_size=70)
    state, stored = backbone.model.state_dict(), load_file(path)
    assert state.keys() == stored.keys()
    assert all(torch.equal(state[key], stored[key].float()) for key in state)
    assert torch.isfinite(backbone(images).pooled).all()


@pytest.mark.shared_data
def test_the_real_vit_s14_is_refused_by_vit_s16(shared_data: Path) -> None:
    with pytest.raises(ValueError, match=r"vit_s14_70_ti100\.safetensors does not belong to"):
        Backbone("vit_small_patch16_224", weights=str(shared_data / "vit_s14_70_ti100.safetensors"))


# -- the hub --------------------------------------------------------------------------------------

#: Asks the hub that the environment names, each time that it is told to.
HUB = """
import sys, time
from kora.backbone.vit import Backbone
for _ in sys.stdin:
    begun = time.monotonic()
    try:
        Backbone("vit_tiny_patch16_224")
    except RuntimeError as error:
        print(f"{time.monotonic() - begun} {error}", flush=True)
"""


class Refusing(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    do_HEAD = do_GET  # noqa: N815  (the name is the protocol's)

    def log_message(self, *_: object) -> None:
        pass


def test_without_network_and_without_the_file_the_error_comes_soon_and_names_the_remedy(
    tmp_path: Path,
) -> None:
    proxies = ("http_proxy", "https_proxy", "all_proxy")
    environment = {k: v for k, v in os.environ.items() if k.lower() not in proxies}
    environment.pop("HF_HUB_OFFLINE", None)

    def asked() -> str:
        print("ask", file=process.stdin, flush=True)
        seconds, _, line = process.stdout.readline().partition(" ")
        assert float(seconds) < 15
        return line

    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        process: Any = subprocess.Popen(
            [sys.executable, "-c", HUB], env={**environment, "HF_HOME": str(tmp_path)}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            refused = asked()
        finally:
            server.shutdown()
            thread.join()
    try:
        unreachable = asked()
    finally:
        process.communicate()
    assert "vit_tiny_patch16_224" in refused
    assert "model.backbone.weights" in refused
    assert unreachable.startswith("No network: the pretrained weights of 'vit_tiny_patch16_224'")
    assert environment["HF_ENDPOINT"] in unreachable
    assert "model.backbone.weights" in unreachable
    assert "quickstart" in unreachable


@pytest.mark.parametrize("address", ["http://localhost:port", "https://[::1", "nowhere"])
def test_an_address_that_is_none_is_not_reached(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert not is_reachable(address)
