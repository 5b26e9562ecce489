"""A W&B logger that never stops a run: offline if the server does not answer, and a bounded end."""

from __future__ import annotations

import atexit
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from kora.console.errors import first_line
from kora.console.say import say
from kora.runs.durable import write_text

__all__ = [
    "FINISH_S",
    "PANELS_SHARE",
    "START_S",
    "SWEEP_VARIABLES",
    "BoundedWandb",
    "finish_wandb",
    "keep_run_id",
    "leave_wandb",
    "sweep_run_id",
    "wandb_run_id",
]

#: Seconds for the start online, with the check of the server, and for the upload at the end. What
#: W&B does after that takes as long again, and the whole end should take at most a minute.
START_S, FINISH_S = 8.0, 24.0
#: Share of the upload's seconds for what W&B asks the server before it: panels and the adapter.
PANELS_SHARE = 3 / 8
_LEAVE_S = 1.0  # for the end of W&B's process after a start that failed
_ID_FILE = "wandb_run.json"
_EMPTY = 7  # bytes of a file of W&B without records
#: By these variables a W&B agent identifies its run; a run that this one starts is another.
SWEEP_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH")


def sweep_run_id() -> str | None:
    """Id that the agent of a sweep has given to this run; None outside of a sweep."""
    return os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None


def wandb_run_id(place: Path) -> str | None:
    """Id of the W&B run of a run folder, or of the run that a checkpoint file is from.

    None if W&B was not used, or the file cannot be read.
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
    write_text(run_folder / _ID_FILE, json.dumps({"id": run_id}) + "\n")


class BoundedWandb(WandbLogger):
    """A WandbLogger that never stops a run: if W&B fails, it goes offline or is left out.

    Its options are those of WandbLogger without `settings`, which are set here, and with
    `start_s` and `finish_s`, the seconds that the start online and the upload at the end may take,
    and `unasked`: nobody here uses W&B, so no upload command is shown.

    Validation and test are drawn over epochs, and validation is summarised by its smallest, largest
    and last value. A test has one value and no best one: choosing by it would be selection.
    """

    def __init__(
        self,
        *,
        offline: bool,
        upload_adapter: bool = True,
        start_s: float = START_S,
        finish_s: float = FINISH_S,
        unasked: bool = False,
        **options: Any,
    ) -> None:
        import wandb

        # W&B reports its own errors, and at the end waits for a server that does not answer.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        settings = wandb.Settings(
            silent=offline,
            init_timeout=max(start_s, 1.0),
            finish_timeout=finish_s,
            finish_timeout_raises=True,
            x_disable_viewer=True,  # or it asks who is logged in, twice, for five seconds each
            x_transaction_log_flush_interval=1.0,  # seconds until a row is on the disk, else 15
        )
        super().__init__(offline=offline, settings=settings, **options)
        #: Whether nothing can be logged any more.
        self.gone = False
        self._defined: set[str] = set()
        self.upload_adapter, self.finish_s, self.unasked = upload_adapter, finish_s, unasked
        self._wandb_init.pop("anonymous", None)  # W&B warns of it, though nobody set it

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run, started by the first call; one that logs nothing if W&B cannot start."""
        if self._experiment is None and not self._offline:
            try:
                return self._start("online")
            except Exception as error:  # of W&B, or of the socket to its own process
                say(f"W&B could not start ({first_line(error)}): this run is logged offline.")
                self._let_go()
                self._offline = True
                self._wandb_init["settings"].silent = True
        if self._experiment is None:
            try:
                return self._start("offline")
            except Exception as error:
                say(f"W&B could not start offline ({first_line(error)}): this run does not use it.")
                self._let_go()
                self.gone = True
                return self._start("disabled")
        return super().experiment

    def _start(self, mode: str) -> Any:
        import wandb

        settings = self._wandb_init["settings"]
        self._wandb_init["mode"] = settings.mode = mode
        with _quiet_children():
            wandb.setup(settings)  # starts W&B's own process
        atexit.unregister(leave_wandb)
        atexit.register(leave_wandb)  # what is registered last is called first
        run = super().experiment
        if mode == "online" and not run.entity:  # W&B continues, and its process dies soon after
            raise ConnectionError("the server answers without a run")
        return run

    def _let_go(self) -> None:
        """End W&B, which may still hold the run or its id; bounded in time, as it may hang."""
        import wandb

        for leave in (wandb.finish, wandb.teardown):
            leaving = Thread(target=_ignoring_errors, args=(leave,), daemon=True)
            leaving.start()
            leaving.join(_LEAVE_S)
        wandb.run = self._experiment = None

    @property
    def is_online(self) -> bool:
        """Whether the run logs to a server, which answered when the run started."""
        return not self._offline

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log a config; if W&B's own process has died, say so once and log nothing more."""
        if not self.gone:
            with self._reporting_failure():
                super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log metrics; if W&B's own process has died, say so once and log nothing more."""
        if not self.gone:
            with self._reporting_failure():
                self._define(metrics)
                super().log_metrics(metrics, step)

    @contextmanager
    def _reporting_failure(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # no error of a logger may stop training
            self.gone = True
            say(f"W&B stopped working ({first_line(error)}); metrics.csv continues.")

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


def finish_wandb(logger: BoundedWandb, *, answers: bool = True) -> str | None:
    """End the run within bounded time; returns a message for the user, or None.

    Nothing is raised, even if W&B fails. If the server did not answer a moment ago, W&B may take an
    unfinished upload for done.
    """
    run = logger.experiment
    if run.settings.mode == "disabled":
        return "could not start: this run is not in W&B"
    folder, offline = Path(run.dir).parent, run.settings._offline
    try:
        run.finish()
    except TimeoutError:
        return (
            f"the server stopped answering, and not everything was uploaded; for the rest: "
            f"wandb sync {folder}"
        )
    except Exception as error:  # the process of W&B has died: what it wrote until then is there
        wrote = any(file.stat().st_size > _EMPTY for file in folder.glob("*.wandb"))
        rest = (
            f"to upload what it has: wandb sync {folder}" if wrote else "it has nothing to upload"
        )
        return f"stopped working ({type(error).__name__}); {rest}"
    if offline:
        # A run that was resumed has a folder for each part; W&B uploads them in their order.
        parts = sorted(folder.parent.glob(f"offline-run-*-{run.id}"))
        command = " ".join(["wandb sync", *map(str, parts)])
        return None if logger.unasked else f"offline; to upload: {command}"
    if logger.gone:
        return f"stopped working before the end; for what is not uploaded: wandb sync {folder}"
    return None if answers else f"for what is not uploaded: wandb sync {folder}"


def leave_wandb() -> None:
    """End W&B's own process; a run that has not been ended counts as failed.

    W&B does so itself at the end of Python, but prints a traceback if its process has died, and
    `wandb.teardown` would exit with the code of that process. Here nothing is raised.
    """
    import wandb

    _ignoring_errors(wandb.teardown)


def _ignoring_errors(leave: Callable[..., None]) -> None:
    with suppress(Exception, SystemExit):
        leave(exit_code=1)


@contextmanager
def _quiet_children() -> Iterator[None]:
    """Processes started in this block have no stderr: W&B's would print a stack when it dies."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no stderr anyway
        yield
        return
    try:
        if not os.environ.get("KORA_DEBUG"):
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
