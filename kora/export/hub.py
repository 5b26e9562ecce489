"""`kora push RUN OWNER/NAME`: upload the adapter folder of a run to the Hugging Face hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kora.adapters.folder import ADAPTER_WEIGHTS, read_adapter_tensors, write_record
from kora.adapters.hub import endpoint, require_repository
from kora.console.errors import first_line
from kora.console.say import say
from kora.export.model_card import write_card
from kora.export.options import push_parser
from kora.runs.adapter_config import read_adapter_config, run_of
from kora.tasks.load import adapter_folder

__all__ = ["push", "push_command"]


def push_command(args: Sequence[str]) -> None:
    """Parse the options, push, and print the address."""
    own = push_parser().parse_args(args)
    url = push(own.run, own.repository, private=own.private, licence=own.license)
    say(f'{url}: kora.load_adapter("hf://{own.repository}")')


def push(
    run: str | Path, repository: str, *, private: bool = False, licence: str | None = None
) -> str:
    """Upload an adapter folder; returns the address of the repository, which is made if needed.

    Args:
        run: A run's folder, or the folder `adapter` in it.
        repository: OWNER/NAME.
        private: Only its owner may read it.
        licence: Of the adapter, for the card; None: the card names none.

    Raises:
        FileNotFoundError: There is no adapter folder.
        ValueError: The name is not valid, or there is no token.
        RuntimeError: The hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    require_repository(repository)
    folder = adapter_folder(run)
    record = read_adapter_config(folder)
    token = get_token()
    if token is None:
        raise ValueError(
            "There is no token of the hub. Set HF_TOKEN to one that may write, or call "
            "`hf auth login` once."
        )
    hub = HfApi(endpoint=endpoint(), token=token)
    with tempfile.TemporaryDirectory() as place:
        _prepare(folder, record, Path(place))
        write_card(Path(place), run=run_of(folder), where=f"hf://{repository}", licence=licence)
        try:
            hub.create_repo(repository, private=private, exist_ok=True)
            hub.upload_folder(
                repo_id=repository, folder_path=place,
                commit_message="An adapter of KoRA",
            )  # fmt: skip
        except (HfHubHTTPError, OSError) as error:
            reason = first_line(error).rstrip(".")
            raise RuntimeError(
                f"{repository} cannot be pushed: {reason}. Check the network, the name "
                "of the owner, and that the token (HF_TOKEN) may write there."
            ) from error
    return f"{hub.endpoint}/{repository}"


def _prepare(folder: Path, record: dict[str, Any], place: Path) -> None:
    """Copy an adapter folder, without paths of this machine."""
    weights = record.get("weights") or {}
    if weights.get("source") not in (None, "pretrained", "random"):
        record = {**record, "weights": {**weights, "source": Path(weights["source"]).name}}
    arguments = record["adapter"]["init_args"]
    if "sources" in arguments:  # of a fusion, which holds what they were
        names = [f"source {number}" for number in range(1, 1 + len(arguments["sources"]))]
        adapter = {**record["adapter"], "init_args": {**arguments, "sources": names}}
        record = {**record, "adapter": adapter}
    write_record(place, record)
    read_adapter_tensors(folder)  # a link to another file has not their checksum
    shutil.copyfile(folder / ADAPTER_WEIGHTS, place / ADAPTER_WEIGHTS)
