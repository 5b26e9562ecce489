"""A W&B run that stops no run: offline where the server does not answer, and a bounded end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import requests
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from kora.progress import say
from kora.results import write_atomically

__all__ = ["BoundedWandb", "finish_wandb", "keep_run_id", "server_answers", "wandb_run_id"]

#: Seconds: a look at the server, the start of a run, and the upload at its end. What W&B does after
#: that takes as long again, and all of the end is to take a minute at most.
_LOOK_S, _START_S, FINISH_S = 4.0, 30.0, 25.0
_ID_FILE = "wandb_run.json"


def server_answers(base_url: str) -> bool:
    """Whether a W&B server answers what a run would ask first, also that it wants a login.

    A connection alone says little: a server in trouble, or a proxy, accepts it and says nothing.
    """
    try:
        answer = requests.post(
            f"{base_url.rstrip('/')}/graphql",
            json={"query": "query Viewer { viewer { id } }"},
            timeout=_LOOK_S,
        )
        if answer.status_code != 401:
            answer.raise_for_status()
            answer.json()  # a proxy would send a page for people
    except requests.RequestException:
        return False
    return True


def wandb_run_id(place: Path) -> str | None:
    """Id of the W&B run of a run folder, or of the run that a checkpoint file is from.

    Args:
        place: the folder of a run, or anything below it, such as `checkpoints/last.ckpt`.

    Returns:
        None where W&B was not used, or the file cannot be read.
    """
    for folder in (place, *list(place.parents)[:2]):
        try:
            found = json.loads((folder / _ID_FILE).read_text(encoding="utf-8"))["id"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return found if isinstance(found, str) else None
    return None


@rank_zero_only
def keep_run_id(run_folder: Path, run_id: str) -> None:
    """Write the id into the run folder at the start, so that a resumed run finds it."""
    text = json.dumps({"id": run_id}) + "\n"
    write_atomically(run_folder / _ID_FILE, lambda path: path.write_text(text, encoding="utf-8"))


class BoundedWandb(WandbLogger):
    """A WandbLogger whose run goes offline where it cannot start.

    Its options are those of WandbLogger, without `settings`, which are set here.
    """

    def __init__(self, *, offline: bool, **options: Any) -> None:
        import wandb

        settings = wandb.Settings(
            silent=offline,
            init_timeout=_START_S,
            finish_timeout=FINISH_S,
            finish_timeout_raises=True,
        )
        super().__init__(offline=offline, settings=settings, **options)
        self._lost = False
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, though nobody set it

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run; started by the first call."""
        import wandb

        if self._experiment is None and not self._offline:
            try:
                return super().experiment
            except (wandb.Error, TimeoutError) as error:
                reason = str(error).partition("\n")[0]
                say(f"W&B could not start ({reason}): this run is logged offline.")
                wandb.teardown()  # it still holds the id of the run
                self._offline = True
                self._wandb_init["settings"].silent = True
        return super().experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log; where W&B's own process has died, say so once, and log nothing more."""
        if self._lost:
            return
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # whatever it is, a log is no reason to stop training
            self._lost = True
            say(f"W&B stopped working ({type(error).__name__}: {error}); metrics.csv goes on.")


def finish_wandb(logger: WandbLogger) -> str | None:
    """End the run within a minute; returns what is to be said of it, None where all is uploaded."""
    run = logger.experiment
    folder, offline = Path(run.dir).parent, run.settings._offline
    try:
        run.finish()
    except TimeoutError:
        return (
            f"the server stopped answering, and not everything was uploaded; for the rest: "
            f"wandb sync {folder}"
        )
    except Exception as error:  # the process of W&B has died: what it wrote until then is there
        return (
            f"stopped working ({type(error).__name__}); to upload what it has: wandb sync {folder}"
        )
    return f"offline; to upload: wandb sync {folder}" if offline else None
