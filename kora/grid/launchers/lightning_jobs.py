"""Tasks as jobs of Lightning AI, each on a machine of its own with a snapshot of a Studio.

A job cannot write to the Studio: what it writes appears in `/teamspace/jobs/NAME/`, and its run
folders are fetched from there. Jobs share no folder, so their names keep them apart: a task has the
job `kora-GRID-HASH-TRY`.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kora.console.errors import first_line
from kora.grid.dispatch import Ended, Task, last_error
from kora.grid.file import Job
from kora.grid.launchers.batch import QueueError, Refused, Seen, grid_of, task_key
from kora.grid.run import Outcome
from kora.runs.config_files import configs_folder
from kora.runs.results import claim_version
from kora.runs.search import find_finished_run

__all__ = ["LightningJobs"]

_HOME = Path("/teamspace/studios/this_studio")  # of a Studio and its jobs
_DRIVE = Path("/teamspace/jobs")  # what jobs wrote, seen from a Studio
_ARRIVES_S = 300.0  # until what a job wrote appears there
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD")


class LightningJobs:
    """The jobs of a teamspace.

    Args:
        machine: A name of `lightning_sdk.Machine`, such as `A100`.
        studio: The Studio whose snapshot the jobs run; None: the one that this process is in.
        teamspace: `OWNER/NAME`; None: that of this Studio, or of the SDK's settings.
        folder: Folder in the Studio in which the command runs; None: this one, if this is a
            Studio, else its home.
        interruptible: Machines that cost less and may be taken away.
        max_cost: US dollars; when all jobs of a call together have cost as much, they are stopped.
        look_s: Seconds between two looks, at most.

    Raises:
        ValueError: The SDK is not installed, there are no credentials or they are not accepted, or
            there is no such machine, teamspace or Studio.
    """

    name = "Lightning AI"

    def __init__(
        self, *, machine: str, studio: str | None, teamspace: str | None, folder: str | None = None,
        interruptible: bool = False, max_cost: float | None = None, look_s: float = 30.0,
    ) -> None:  # fmt: skip
        sdk = _sdk()
        _require_credentials()
        self._sdk = sdk
        self._machine = _machine(sdk, machine)
        try:
            self._studio = sdk.Studio(studio, teamspace=teamspace, create_ok=False)
        except Exception as error:  # the SDK's errors have no common class
            raise ValueError(_why_not(error, studio, teamspace)) from error
        self._teamspace = self._studio.teamspace
        here = Path.cwd()
        inside = here.relative_to(_HOME) if here.is_relative_to(_HOME) else Path()
        self._folder = Path(folder) if folder is not None else inside
        self._interruptible = interruptible
        self._max_cost = max_cost
        self._mine: dict[str, float] = {}  # jobs of this call, and what they have cost
        self._missing: dict[str, float] = {}  # completed, and since when their files are awaited
        self.look_s = look_s

    def shown(self, tasks: Sequence[Task]) -> str:
        """The calls that `submit` would make."""
        lines = []
        for task in tasks:
            name = f"{_stem(task)}-1"
            call = {"name": name, "command": self._command(task), **self._options()}
            call["machine"] = self._machine.name
            said = ", ".join(f"{key}={value!r}" for key, value in call.items())
            lines.append(f"Job.run({said}, studio={self._studio.name!r})")
        price = self._machine.interruptible_cost if self._interruptible else self._machine.cost
        if price:
            lines.append(f"{self._machine.name}: {price:.2f} US dollars an hour and job")
        return "\n".join(lines)

    def submit(self, tasks: Sequence[Task]) -> list[str | Refused]:
        """Submit tasks, each as a job.

        Raises:
            ValueError: A command has a secret in it, or results would not come back; no job was
                submitted.
        """
        there = self._jobs()
        commands = [self._command(task) for task in tasks]  # all are fit to be sent
        return [self._submitted(*each, there) for each in zip(tasks, commands, strict=True)]

    def _submitted(self, task: Task, command: str, there: Mapping[str, Any]) -> str | Refused:
        attempt = 1
        while f"{_stem(task)}-{attempt}" in there:
            attempt += 1
        name = f"{_stem(task)}-{attempt}"
        try:
            job = self._sdk.Job.run(
                name=name, command=command, studio=self._studio, **self._options()
            )
            name = str(job.name)  # another one if this was taken meanwhile
        except Exception as error:  # the SDK's errors have no common class
            if name not in self._jobs():  # it may have failed after it submitted the job
                return Refused(f"Lightning AI refused the job: {first_line(error)}")
        self._mine[name] = 0.0
        return name

    def _options(self) -> dict[str, Any]:
        # Environment variables are left out: if a call fails, the SDK reports all its arguments.
        return {
            "machine": self._machine, "interruptible": self._interruptible, "tags": ["kora"]
        }  # fmt: skip

    def _command(self, task: Task) -> str:
        """The shell command of a job; `set -e` is on there."""
        for _, config in task.runs:
            runs_dir = config.get("runs_dir", "")
            if Path(runs_dir).is_absolute():
                raise ValueError(
                    f"runs_dir is {runs_dir}. What a job writes comes back from below the folder "
                    "in which it runs: give a relative path."
                )
        runs = [shlex.join(map(_by_name, self._words(job))) for job, _ in task.runs]
        command = " && ".join([f"cd {shlex.quote(str(self._folder))}", *runs])
        for name, value in os.environ.items():
            if _SECRET.search(name) and len(value) >= 8 and value in command:
                raise ValueError(
                    f"The command of '{task.entry.job.name}' has the value of {name} in it. "
                    "Lightning AI would store it in clear. Keep it as a secret of the teamspace, "
                    "which every job sees as an environment variable."
                )
        return command

    def _words(self, job: Job) -> list[str]:
        return ["kora", "fit", *job.args, "--resume", "auto"]

    def known(self, tasks: Sequence[Task]) -> list[str | None]:
        """The newest job of each task, if it has not failed: its run folders can be fetched."""
        there = self._jobs()
        return [self._known(task, there) for task in tasks]

    def _known(self, task: Task, there: Mapping[str, Any]) -> str | None:
        stem, status = f"{_stem(task)}-", self._sdk.Status
        tries = [int(n[len(stem) :]) for n in there if re.fullmatch(re.escape(stem) + r"\d+", n)]
        if not tries:
            return None
        name = f"{stem}{max(tries)}"
        if self._status(there[name]) in (status.Failed, status.Stopped):
            return None
        self._mine[name] = 0.0
        return name

    def look(self) -> dict[str, Seen]:
        """The jobs of this call that wait or run.

        Raises:
            QueueError: Lightning AI does not answer.
        """
        there, status, seen = self._jobs(), self._sdk.Status, dict[str, Seen]()
        for name in self._mine:
            job = there.get(name)
            if job is None:
                continue
            now = self._status(job)
            self._mine[name] = float(_asked(partial(getattr, job, "total_cost")) or 0.0)
            if now in (status.Pending, status.NotCreated):
                seen[name] = Seen(False, why="a machine")
            elif now in (status.Running, status.Stopping):
                seen[name] = Seen(True, str(job.link))
        return seen

    def cost(self) -> float:
        """What the jobs of this call have cost so far, in US dollars."""
        return sum(self._mine.values())

    def too_dear(self) -> str | None:
        """Why no more may be spent; None if it may."""
        if self._max_cost is None or self.cost() < self._max_cost:
            return None
        return (
            f"the jobs have cost {self.cost():.2f} US dollars, and --max_cost is {self._max_cost:g}"
        )

    def ended(self, task: Task, job: str) -> Ended | None:
        """How a job ended; fetches its log and its run folders.

        None: they have not appeared yet.
        """
        there = self._jobs().get(job)
        if there is None:
            why = f"job {job} is no longer in the teamspace; was it deleted?"
            return Ended(task.entry, [Outcome(None, why, ran=False)])
        status = self._status(there)
        if status != self._sdk.Status.Completed:
            failed = status == self._sdk.Status.Failed
            outcome = Outcome(None, f"job {job} {status.value.lower()}", ran=failed)
            return Ended(task.entry, [outcome], self._fetch_log(task, there))
        seconds = (there.stopped_at - there.started_at).total_seconds() if there.stopped_at else 0.0
        outcomes = []
        for run, config in task.runs:
            found = self._fetched(there, config)
            if found is None:
                since = self._missing.setdefault(job, time.monotonic())
                if time.monotonic() < since + _ARRIVES_S:
                    return None
                found = Outcome(None, self._lacks(there, run, config), ran=False)
            outcomes.append(found._replace(seconds=seconds))
            if found.folder is None:
                break
        return Ended(task.entry, outcomes, self._fetch_log(task, there))

    def _fetch_log(self, task: Task, job: Any) -> str:
        """Write the log of a job into that of the task; returns its last error, or last line."""
        assert task.log is not None
        try:
            text = str(job.logs).rstrip()
        except Exception as error:  # the SDK's errors have no common class
            return f"its log cannot be fetched: {first_line(error)}"
        task.log.parent.mkdir(parents=True, exist_ok=True)
        with task.log.open("a", encoding="utf-8") as file:
            file.write(f"=== {job.name}: {job.link}\n{text}\n")
        return last_error(text) or text.rpartition("\n")[2]

    def _fetched(self, job: Any, config: Mapping[str, Any]) -> Outcome | None:
        """Fetch a run folder of a completed job; None if it has not appeared yet."""
        there = find_finished_run(config)
        if there is not None:  # an earlier call fetched it
            return Outcome(there)
        experiment = _experiment(config)
        with self._copied(job, experiment, Path(config["runs_dir"])) as where:
            found = find_finished_run({**config, "runs_dir": str(where)})
            return None if found is None else Outcome(_moved(found, _strategy(experiment, found)))

    def _lacks(self, job: Any, run: Job, config: Mapping[str, Any]) -> str:
        return (
            f"job {job.name} is completed, but {_experiment(config)} of {run.name} is not among "
            f"what it wrote. Look at {job.link}; delete the job to train again"
        )

    @contextmanager
    def _copied(self, job: Any, folder: Path, beside: Path) -> Iterator[Path]:
        """A folder that has a copy of one that a job wrote, if that has appeared."""
        beside.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=beside, prefix=".fetched-") as where:
            self._copy(job, folder, Path(where) / folder.relative_to(beside))
            yield Path(where)

    def _copy(self, job: Any, folder: Path, to: Path) -> None:
        """Copy a folder that a job wrote, if there is one already."""
        drive = _DRIVE / job.name
        if drive.is_dir():
            source = drive / self._folder / folder
            if source.is_dir():
                shutil.copytree(source, to)
            return
        try:
            job.download_artifacts(to, str(self._folder / folder))
        except Exception as error:  # the SDK's errors have no common class
            if not isinstance(error, RuntimeError):
                raise QueueError(f"{job.name} cannot be fetched: {first_line(error)}") from error

    def stop(self, jobs: Sequence[str]) -> None:
        """Stop jobs, as many as can be.

        Raises:
            QueueError: Lightning AI did not answer for all of them.
        """
        there, failed = self._jobs(), list[QueueError]()
        for name in jobs:
            if name in there:
                try:
                    _asked(there[name].stop)
                except QueueError as error:
                    failed.append(error)
        if failed:
            raise failed[0]

    def how_to_stop(self, jobs: Sequence[str]) -> str:
        """The commands that stop jobs."""
        return "; ".join(f"lightning job stop {name}" for name in jobs)

    def _jobs(self) -> dict[str, Any]:
        found = _asked(lambda: self._teamspace.jobs)
        return {str(job.name): job for job in found if str(job.name).startswith("kora-")}

    def _status(self, job: Any) -> Any:
        return _asked(lambda: job.status)


def _asked(ask: Callable[[], Any]) -> Any:
    """What Lightning AI answers. Most attributes of its objects are requests.

    Raises:
        QueueError: It does not answer.
    """
    try:
        return ask()
    except Exception as error:  # the SDK's errors have no common class
        raise QueueError(f"Lightning AI does not answer: {first_line(error)}.") from error


def _experiment(config: Mapping[str, Any]) -> Path:
    return Path(config["runs_dir"], config["experiment"])


def _sdk() -> Any:
    try:
        import lightning_sdk
    except ImportError as error:
        raise ValueError(
            "--launcher lightning needs Lightning's SDK: pip install 'kora-vit[lightning-sdk]'"
        ) from error
    return lightning_sdk


def _require_credentials() -> None:
    """Without them the SDK opens a browser and waits."""
    from lightning_sdk.lightning_cloud.login import Auth

    auth = Auth()
    if not (auth.api_key or auth.auth_token or (auth.secrets_file.is_file() and auth.load())):
        raise ValueError(
            "--launcher lightning: there are no credentials of Lightning AI here. Set "
            "LIGHTNING_USER_ID and LIGHTNING_API_KEY (in the settings of your account, under "
            "Keys), or call `lightning login`."
        )


def _machine(sdk: Any, name: str) -> Any:
    known = [n for n in vars(sdk.Machine) if n.isupper()]
    if name.upper() in known:
        return getattr(sdk.Machine, name.upper())
    near = difflib.get_close_matches(name.upper(), known, n=3, cutoff=0.3)
    raise ValueError(
        f"--machine {name}: Lightning's SDK knows no such machine. Near it: {', '.join(near)}."
    )


def _why_not(error: Exception, studio: str | None, teamspace: str | None) -> str:
    if getattr(error, "status", None) == 401 or "Authentication failed" in str(error):
        return (
            "--launcher lightning: Lightning AI does not accept the credentials. Check "
            "LIGHTNING_USER_ID and LIGHTNING_API_KEY, or call `lightning login` again."
        )
    return (
        f"--launcher lightning: there is no Studio {studio or 'around this process'} in teamspace "
        f"{teamspace or 'of this process'} ({first_line(error)}). Name both: --studio NAME "
        "--teamspace OWNER/NAME."
    )


def _stem(task: Task) -> str:
    assert task.log is not None
    grid = re.sub(r"[^a-z0-9]+", "-", grid_of(task.log.parent).lower()).strip("-")
    return f"kora-{grid[:30]}-{task_key(task)[:8]}"


def _by_name(word: str) -> str:
    """A config that comes with kora by its name, which is found in the Studio too."""
    ours = configs_folder()
    inside = word.startswith(f"{ours}/")
    return word.removeprefix(f"{ours.parent}/") if inside else word


def _strategy(experiment: Path, found: Path) -> Path:
    """The folder of a run's strategy below an experiment: .../STRATEGY/seedN/version_M."""
    return experiment / found.parts[-3]


def _moved(found: Path, strategy: Path) -> Path:
    """Move a run folder to the next free version below a strategy."""
    target = claim_version(strategy / found.parent.name)
    os.replace(found, target)
    return target
