"""Weights of a backbone: from a local file, loaded exactly, or from the hub if it is reachable."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = [
    "by_hand", "is_reachable", "load_file_exactly", "matrices_on_disk", "require_fetchable",
    "tokens_in", "without_memory", "without_numbers",
]  # fmt: skip

_OPTION = "model.backbone.weights, or --weights of kora adapt"

_on_disk: ContextVar[bool] = ContextVar("matrices stay on disk", default=False)


@contextmanager
def matrices_on_disk() -> Iterator[None]:
    """Backbones that are built inside leave the matrices of their weights file on disk.

    Their memory is that of the file, mapped, in the file's type: read when it is used, and one copy
    for all processes of a machine. For a backbone that is cut into shards before it computes.
    """
    token = _on_disk.set(True)
    try:
        yield
    finally:
        _on_disk.reset(token)


def without_memory(make: Callable[[], Any]) -> Any:
    """A model whose parameters, within `matrices_on_disk`, wait on the meta device for their file.

    Elsewhere it is made as usual: it draws its random start, and seeds give the adapters that they
    always gave.
    """
    if not _on_disk.get():
        return make()
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = register_empty  # type: ignore
    try:
        model = make()
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
    for module in model.modules():  # older versions of timm leave what no file has for later
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    return model


class _LeftAsTheyAre(TorchFunctionMode):
    """What would write numbers into a parameter that has none gives it back at once."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _INITIAL:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **kwargs)


#: By which torch and timm draw what a new parameter starts with.
_INITIAL = frozenset(
    [getattr(nn.init, name) for name in ("kaiming_uniform_", "normal_", "uniform_", "ones_")]
    + [getattr(Tensor, name) for name in ("uniform_", "erfinv_", "mul_", "add_", "clamp_", "zero_")]
)


@contextmanager
def without_numbers() -> Iterator[None]:
    """Modules that are built inside have sizes alone: no storage (meta device), no initial values.

    A meta tensor computes nothing, but asking it to takes most of the time of a ViT-S.
    """
    with torch.device("meta"), _LeftAsTheyAre():
        yield


def load_file_exactly(model: Any, name: str, path: Path) -> None:
    """Load a local file with exactly matching keys.

    timm loads leniently once the classifier is dropped (missing keys keep random values), so the
    keys are compared here. timm's own filter still resamples position embeddings.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For a file of another kind or architecture.
        RuntimeError: If the file is damaged.
    """
    if "$" in str(path):
        raise ValueError(
            f"model.backbone.weights names an environment variable that is not set: {path}. "
            "Set it, or write the path out."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"Weights file {path} does not exist. Name a .safetensors file, 'pretrained' or "
            f"'random' with {_OPTION}."
        )
    if path.suffix != ".safetensors":
        raise ValueError(
            f"Weights file {path} is not a .safetensors file. Pickled checkpoints can execute code "
            "and are not read; convert it with safetensors.torch.save_file."
        )
    try:
        state = load_file(path)
    except SafetensorError as error:
        raise RuntimeError(
            f"Weights file {path} is damaged or truncated: {error}. Get it again."
        ) from error
    for key in ("mean", "std"):
        state.pop(key, None)
    have = model.state_dict()
    classifier = model.pretrained_cfg.get("classifier") or "head"
    prefixes = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    for key in [k for k in state if k.rsplit(".", 1)[0] in prefixes and k not in have]:
        del state[key]
    wrong = [
        f"'{key}' has shape {tuple(state[key].shape)}, expected {tuple(have[key].shape)}"
        for key in state
        if key in have and "pos_embed" not in key and state[key].shape != have[key].shape
    ]
    filter_fn = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if filter_fn is not None and not wrong:
        state = filter_fn(state, model)
    missing, extra = sorted(have.keys() - state.keys()), sorted(state.keys() - have.keys())
    wrong += [f"'{key}' is missing" for key in missing] + [f"'{key}' is unknown" for key in extra]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(
            f"Weights file {path} does not belong to '{name}': {'; '.join(wrong[:3])}{more}. "
            "Set model.backbone.name to the architecture that the file was saved from."
        )
    if not _on_disk.get():
        model.load_state_dict(state)
        return
    matrices = {f"{at}.weight" for at, m in model.named_modules() if type(m) is nn.Linear}
    kept = {k: v if k in matrices else v.to(have[k].dtype, copy=True) for k, v in state.items()}
    model.load_state_dict(kept, assign=True)


def tokens_in(path: Path) -> int | None:
    """Number of position embeddings in a file of weights; None if it has none."""
    try:
        with safe_open(path, framework="pt") as file:
            if "pos_embed" not in list(file.keys()):
                return None
            shape: list[int] = file.get_slice("pos_embed").get_shape()
    except (OSError, SafetensorError):
        return None  # loading the file reports what is wrong
    return shape[1] if len(shape) == 3 else None


def require_fetchable(name: str, cfg: Mapping[str, Any]) -> None:
    """Check before the hub is asked: its client retries for most of a minute before it gives up.

    Raises:
        ValueError: If timm knows of no weights.
        RuntimeError: If they are not cached and the hub cannot be reached.
    """
    if not (cfg.get("hf_hub_id") or cfg.get("url")):
        raise ValueError(
            f"timm has no pretrained weights for '{name}'. Name a .safetensors file, or 'random', "
            f"with {_OPTION}."
        )
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not _hub_file_is_cached(cfg) and not is_reachable(endpoint):
        raise RuntimeError(
            f"No network: the pretrained weights of '{name}' are not in the local cache and "
            f"{endpoint} cannot be reached. {by_hand(name)}"
        )


def by_hand(name: str) -> str:
    """How to get weights onto a machine without internet; completes an error."""
    return (
        "On a machine with internet, save them with "
        f"safetensors.torch.save_file(timm.create_model('{name}', pretrained=True).state_dict(), "
        f"'weights.safetensors'), and name that file here: {_OPTION}. Nothing is fetched for kora "
        "fit --config quickstart, nor for kora adapt --backbone vit_nano."
    )


def _hub_file_is_cached(cfg: Mapping[str, Any]) -> bool:
    """Whether the hub's weights are in the local cache (true if that cannot be checked)."""
    if not cfg.get("hf_hub_id"):
        return True  # a plain URL: timm's downloader decides
    from huggingface_hub import try_to_load_from_cache

    names = ["model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin"]
    names += [cfg["hf_hub_filename"]] if cfg.get("hf_hub_filename") else []
    return any(isinstance(try_to_load_from_cache(cfg["hf_hub_id"], n), str) for n in names)


def is_reachable(endpoint: str) -> bool:
    """Whether a quick attempt reaches an address, if it is one; assumes so behind a proxy."""
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        url = urlsplit(endpoint)
        port = url.port or (80 if url.scheme == "http" else 443)
        socket.create_connection((url.hostname or "", port), timeout=5.0).close()
    except (OSError, ValueError):
        return False
    return True
