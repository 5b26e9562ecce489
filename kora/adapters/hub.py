"""Adapter folders on the Hugging Face hub: `hf://OWNER/NAME`, or `hf://OWNER/NAME@REVISION`."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kora.adapters.folder import ADAPTER_WEIGHTS
from kora.console.errors import first_line
from kora.runs.adapter_config import ADAPTER_CONFIG

__all__ = ["CARD", "downloaded", "endpoint", "is_on_hub", "require_repository"]

CARD = "README.md"
_ADDRESS = re.compile(r"hf:/+(?P<name>[^@]+)(@(?P<revision>.+))?")
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_on_hub(path: str | Path) -> bool:
    """Whether this is an address of the hub."""
    return str(path).startswith("hf:/")


def endpoint() -> str | None:
    """The server that `HF_ENDPOINT` names, with the same API; None: the hub."""
    return os.environ.get("HF_ENDPOINT")


def require_repository(name: str) -> str:
    """Return the name of a repository, OWNER/NAME.

    Raises:
        ValueError: It does not have this form.
    """
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name} is no repository of the hub; expected OWNER/NAME.")
    return name


def downloaded(address: str | Path) -> Path:
    """The adapter folder at an address, fetched into the hub's own cache if it is not there.

    Only the JSON, the safetensors and the card are fetched: nothing that could be executed.

    Raises:
        ValueError: It is no address, or holds no adapter.
        RuntimeError: It cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = _ADDRESS.fullmatch(str(address))
    if found is None:
        raise ValueError(f"{address} is no address of the hub; expected hf://OWNER/NAME.")
    name, revision = require_repository(found["name"]), found["revision"]
    try:
        folder = snapshot_download(
            name, revision=revision, endpoint=endpoint(),
            allow_patterns=[ADAPTER_CONFIG, ADAPTER_WEIGHTS, CARD],
        )  # fmt: skip
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RuntimeError(
            f"hf://{name} cannot be fetched: {first_line(error)} Check the name, the network, and "
            "for a private repository the variable HF_TOKEN."
        ) from error
    if not (Path(folder) / ADAPTER_CONFIG).is_file():
        raise ValueError(f"hf://{name} holds no adapter of kora: it has no {ADAPTER_CONFIG}.")
    return Path(folder)
