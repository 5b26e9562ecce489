"""A W&B run that stops no run: offline where the server does not answer, and a bounded end."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from kora.progress import say
from kora.results import write_atomically

__all__ = [
    "FINISH_S",
    "PANELS_S",
    "SWEEP_VARIABLES",
    "BoundedWandb",
    "finish_wandb",
    "keep_run_id",
    "sweep_run_id",
    "wandb_run_id",
]

#: Seconds: the start of a run, and at its end what W&B asks the server for,
#: and then the upload. What W&B does after that takes as long as the upload again, and all of the
#: end is to take a minute at most.
_START_S, PANELS_S, FINISH_S = 30.0, 9.0, 24.0
_ID_FILE = "wandb_run.json"
#: By these a W&B agent tells its run which one it is; a run that this one starts is another.
SWEEP_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


def sweep_run_id() -> str | None:
    """Id that the agent of a sweep has given to this run; None outside of a sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


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

    Validation and test are drawn over epochs, and validation is summed up by its least, largest and
    last value. A test has one value and no best one: choosing by it would be selection.
    """

    def __init__(self, *, offline: bool, upload_adapter: bool = True, **options: Any) -> None:
        import wandb

        settings = wandb.Settings(
            silent=offline,
            init_timeout=_START_S,
            finish_timeout=FINISH_S,
            finish_timeout_raises=True,
        )
        super().__init__(offline=offline, settings=settings, **options)
        self._lost = False
        self._defined: set[str] = set()
        self.upload_adapter = upload_adapter
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

    @property
    def is_online(self) -> bool:
        """Whether a server is to be reached; it was when the run started."""
        return not self._offline

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log; where W&B's own process has died, say so once, and log nothing more."""
        if self._lost:
            return
        try:
            self._define(metrics)
            super().log_metrics(metrics, step)
        except Exception as error:  # whatever it is, a log is no reason to stop training
            self._lost = True
            say(f"W&B stopped working ({type(error).__name__}: {error}); metrics.csv goes on.")

    def _define(self, names: Iterable[str]) -> None:
        """Define metrics by their full names: Lightning's own `*` would compete with a pattern."""
        for name in set(names) - self._defined:
            self._defined.add(name)
            stage = name.partition("/")[0]
            if stage == "train":
                self.experiment.define_metric(name, step_metric="trainer/global_step")
            elif stage == "val":
                self.experiment.define_metric(name, step_metric="epoch", summary="min,max,last")
            elif stage == "test":
                self.experiment.define_metric(name, step_metric="epoch")


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
