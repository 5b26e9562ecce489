"""Finished runs of a W&B project, as folders that `kora compare` reads like local ones.

Records are part of the configs, so they all come in a few answers. Outcomes of the test images and
learning curves are files, and are fetched once for each run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from kora.console.errors import first_line
from kora.loggers.wandb_server import require_server
from kora.runs.durable import user_cache, write_text
from kora.runs.outcomes import OUTCOMES_NAME
from kora.runs.results import RESULTS_NAME

__all__ = [
    "KEPT_FILES",
    "RESULTS_KEY",
    "Address",
    "address_of",
    "fetch_runs",
    "record_of",
    "run_cache",
]

#: Config key of the text of results.json. The API gives the configs of many runs in one answer; as
#: text, because W&B would make a column of every value in a table.
RESULTS_KEY = "kora_results"
#: What `kora compare` reads besides it: outcomes of the test images, and learning curves.
KEPT_FILES = (OUTCOMES_NAME, f"{OUTCOMES_NAME}.sha256", "metrics.csv")
_PAGE, _TIMEOUT_S, _AT_ONCE = 100, 60, 8
_MARK = ".fetched"


class Address(NamedTuple):
    """Where runs are in W&B; all experiments of the project if none is named."""

    entity: str
    project: str
    experiment: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in self if part)


def address_of(text: str) -> Address:
    """The parts of ENTITY/PROJECT or ENTITY/PROJECT/EXPERIMENT.

    Raises:
        ValueError: it is neither.
    """
    parts = text.split("/", 2)
    if len(parts) < 2 or not all(parts) or {".", ".."} & set(parts[:2]):
        raise ValueError(
            f"--wandb {text!r}: expected ENTITY/PROJECT or ENTITY/PROJECT/EXPERIMENT, such as "
            "me/kora: a team or user, and a project, as in the address of its page."
        )
    return Address(*parts)


def run_cache() -> Path:
    """Where the files of runs are cached: below $XDG_CACHE_HOME, which is usually ~/.cache."""
    return user_cache() / "wandb"


def record_of(run: Any) -> tuple[str | None, str]:
    """The text of results.json that a run of the public API holds, or why there is none."""
    if run.state in ("running", "pending", "preempting"):
        return None, f"is {run.state}, not finished; left out."
    text = run.config.get(RESULTS_KEY)
    if not isinstance(text, str):
        return None, (
            f"has no {RESULTS_KEY} in its config ({run.state}): it was stopped before its end, or "
            "was not logged by kora fit, validate or test of this version; left out."
        )
    return text, ""


def fetch_runs(where: Address) -> tuple[list[Path], list[str]]:
    """Folders of all finished runs at an address, and a sentence on each that is left out.

    Raises:
        ValueError: no login, no such project, or no run with a record in it.
        RuntimeError: the server does not answer, or refuses.
    """
    base_url = require_server(f"--wandb {where}", later=", or compare the run folders themselves")
    folder = run_cache() / where.entity / where.project
    found: list[tuple[Path, Any, str]] = []
    notes: dict[str, list[str]] = {}
    for run in _listed(where, base_url):
        if where.experiment is not None and run.config.get("experiment") != where.experiment:
            continue
        if not re.fullmatch(r"\w[\w.-]*", str(run.id)):  # a server gives it, and a folder gets it
            raise RuntimeError(f"--wandb {where}: W&B at {base_url} names a run {run.id!r}.")
        text, why = record_of(run)
        if text is None:
            notes.setdefault(why, []).append(f"{run.id} ({run.name})")
        else:
            found.append((folder / run.id, run, text))
    told = [f"{where}: {_several(names)} {why}" for why, names in notes.items()]
    if not found:
        raise ValueError("\n".join([f"--wandb {where}: there is no run to compare.", *told]))
    shown = Console(stderr=True)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        work = pool.map(lambda it: _fetch(*it), found)
        said = track(work, f"Runs of {where}", len(found), console=shown, transient=True)
        told += [f"{where}: {note}" for note in said if note]
    return [folder for folder, _, _ in found], told


def _listed(where: Address, base_url: str) -> Iterator[Any]:
    import wandb

    refusal = f"--wandb {where}: W&B at {base_url} did not give its runs"
    try:
        api = wandb.Api(timeout=_TIMEOUT_S)
        yield from api.runs(f"{where.entity}/{where.project}", per_page=_PAGE, lazy=False)
    except wandb.errors.AuthenticationError as error:
        raise ValueError(f"{refusal}: {first_line(error)} Log in again: wandb login.") from error
    except Exception as error:  # W&B raises many kinds, and so does its transport
        if "could not find project" in str(error).lower():
            raise ValueError(
                f"{refusal}: {first_line(error)}. Check entity and project, and whether you may "
                "read them."
            ) from error
        raise RuntimeError(f"{refusal}: {first_line(error)}") from error


def _fetch(folder: Path, run: Any, text: str) -> str | None:
    """Fetch a run's files if they are not here, its record last. Returns a note on a failure."""
    record, mark = folder / RESULTS_NAME, folder / _MARK
    if mark.is_file() and record.is_file() and record.read_bytes() == text.encode():
        return None
    folder.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    note = None
    try:
        for name in KEPT_FILES:
            (folder / name).unlink(missing_ok=True)  # of an earlier record of this run
        for file in run.files(names=list(KEPT_FILES)):
            if file.name in KEPT_FILES:
                file.download(root=str(folder), replace=True).close()
        mark.touch()
    except Exception as error:  # its record is here, and tables need only that
        note = (
            f"the files of {run.id} ({run.name}) could not be fetched ({first_line(error)}): it "
            "has no learning curve, and no p-value, which needs its prediction for each image."
        )
    write_text(record, text)
    return note


def _several(names: Sequence[str]) -> str:
    if len(names) <= 3:
        return ", ".join(names)
    return f"{', '.join(names[:3])} and {len(names) - 3} more: each"
