"""Tasks as elements of SLURM's job arrays, on machines that share the folder of the runs.

Each call submits one array for its new tasks. `runs/grid_NAME/slurm/` has the list of its tasks and
its script, which is written before it is submitted: the array is found again by its job name,
whenever this process dies. A run saves and queues its job again at the time limit
(kora/training/preemption.py), and SLURM does after a node failure.
"""

from __future__ import annotations

import re
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from kora.grid.dispatch import Ended, Task
from kora.grid.launchers.batch import QueueError, Refused, Seen, grid_of, task_key
from kora.grid.launchers.job import ENDED, ending_of, read_ending, write_list
from kora.grid.run import Outcome
from kora.runs.durable import read_json, write_text

__all__ = ["Slurm", "script"]

#: States in squeue of a job that will never run (again).
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
_RUNS = {"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "SUSPENDED"}
_JOB = "kora-JOB"
_ANSWER_S = 60.0
_REMEDY = "Remove it, and repeat the command: runs of its jobs that still wait are asked for again."
_SHARED_S = 30.0  # until a shared folder shows what another machine wrote


class Slurm:
    """The queue of a SLURM cluster.

    Args:
        num_cpus: Cores of a task, and its number of threads.
        num_gpus: GPUs of a task.
        options: More options of sbatch, such as `partition=gpu`.
        look_s: Seconds between two looks at the queue, at most.

    Raises:
        ValueError: There is no sbatch, or an option is none of sbatch's form.
    """

    name = "SLURM"

    def __init__(
        self, *, num_cpus: float, num_gpus: float, options: Sequence[str] = (), look_s: float = 10.0
    ) -> None:
        for program in ("sbatch", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise ValueError(
                    f"--launcher slurm: there is no {program} here. Call it where you would call "
                    "sbatch, on a login node of the cluster."
                )
        for option in options:
            if not re.fullmatch(r"[a-z][a-z0-9_-]*(=\S+)?", option):
                raise ValueError(
                    f"--sbatch {option}: expected KEY=VALUE as in sbatch's options without the "
                    "dashes, such as partition=gpu."
                )
        self.look_s = look_s
        self._missing: dict[str, float] = {}  # since when jobs are not in the queue
        self._ids: dict[str, str] = {}  # of the elements that are in the queue
        self._options = (
            f"cpus-per-task={max(1, int(num_cpus))}",
            *([f"gpus={num_gpus:g}"] if num_gpus else []),
            *options,
        )

    def shown(self, tasks: Sequence[Task]) -> str:
        """The script that `submit` would give to sbatch."""
        return script(_JOB, _folder(tasks[0]) / f"{_JOB}.json", len(tasks), self._options)

    def submit(self, tasks: Sequence[Task]) -> Sequence[str | Refused]:
        """Submit tasks as one array."""
        folder = _folder(tasks[0])
        # Of what neither #SBATCH lines nor squeue and scancel take for more than one word.
        grid = re.sub(r"[^\w.-]+", "-", grid_of(folder.parent))
        job = f"kora-{grid}-{secrets.token_hex(4)}"
        listed = folder / f"{job}.json"
        write_list(listed, [(task_key(task), task) for task in tasks])
        path = write_text(listed.with_suffix(".sh"), script(job, listed, len(tasks), self._options))
        done = _called("sbatch", "--parsable", str(path))
        if done.returncode:
            listed.unlink()
            return [Refused(f"sbatch refused {path}: {_said(done)}")] * len(tasks)
        return [f"{job}_{number}" for number in range(len(tasks))]

    def known(self, tasks: Sequence[Task]) -> list[str | None]:
        """The elements of earlier arrays for these tasks that are still in the queue."""
        seen, there = self.look(), dict[str, str]()
        for path in _folder(tasks[0]).glob("kora-*.json"):
            if path.name.endswith(ENDED):
                continue
            for number, told in enumerate(read_json(path, remedy=_REMEDY)):
                job = f"{path.stem}_{number}"
                if job in seen:
                    there[told["key"]] = job
        return [there.get(task_key(task)) for task in tasks]

    def look(self) -> dict[str, Seen]:
        """The elements of arrays of this user that wait or run, as JOB-NAME_NUMBER."""
        done = _called("squeue", "--me", "-h", "-r", "-t", "all", "-o", "%j|%F|%K|%T|%N|%r")
        if done.returncode:
            raise QueueError(f"squeue does not answer: {_said(done)}.")
        seen: dict[str, Seen] = {}
        self._ids.clear()
        for line in done.stdout.splitlines():
            words = *line.strip().split("|", 5), *[""] * 5
            name, array, number, state, node, reason = words[:6]
            if name.startswith("kora-") and state not in _OVER:
                runs, job = state in _RUNS, f"{name}_{number}"
                seen[job] = Seen(runs, node, "" if reason == "None" else reason)
                self._ids[job] = f"{array}_{number}"
        self._missing = {job: since for job, since in self._missing.items() if job not in seen}
        return seen

    def ended(self, task: Task, job: str) -> Ended | None:
        """What the job wrote when it ended; if nothing, that it left the queue without a word."""
        name, _, number = job.rpartition("_")
        path = ending_of(_folder(task) / f"{name}.json", int(number))
        told = read_ending(path, task)
        if told is not None:
            return told
        if time.monotonic() < self._missing.setdefault(job, time.monotonic()) + _SHARED_S:
            return None
        why = (
            f"killed, or never started: its job {job} left the queue without a word. See "
            f"{path.parent}, and whether the machines share that folder"
        )
        return Ended(task.entry, [Outcome(None, why)])

    def cost(self) -> None:
        """SLURM does not say."""

    def too_dear(self) -> None:
        """Nothing is paid for."""

    def stop(self, jobs: Sequence[str]) -> None:
        """Cancel jobs; those that an earlier call left in the same array go on."""
        for command in self._cancelling(jobs):
            _called(*command)

    def how_to_stop(self, jobs: Sequence[str]) -> str:
        """The commands that cancel jobs."""
        return "; ".join(map(shlex.join, self._cancelling(jobs)))

    def _cancelling(self, jobs: Sequence[str]) -> Iterator[list[str]]:
        """A command for each array: by its name, if all that is left of it is meant."""
        for name in sorted({job.rpartition("_")[0] for job in jobs}):
            there = {job for job in self._ids if job.rpartition("_")[0] == name}
            mine = there.intersection(jobs)
            by_name = there == mine
            yield [
                "scancel",
                *(["--me", f"--name={name}"] if by_name else sorted(self._ids[j] for j in mine)),
            ]


def script(job: str, listed: Path, count: int, options: Sequence[str]) -> str:
    """The script of an array of `count` tasks."""
    folder = listed.parent
    python = shlex.join([sys.executable, "-P", "-m", "kora.grid.launchers.job", str(listed)])
    lines = [
        f"--job-name={job}",
        f"--array=0-{count - 1}",
        f'--output="{str(folder).replace("%", "%%")}/{job}_%a.out"',
        "--open-mode=append",
        "--ntasks=1",
        "--requeue",
        "--signal=USR1@120",
        *(f"--{option}" for option in options),
    ]
    return "\n".join(
        [
            "#!/bin/bash",
            *(f"#SBATCH {line}" for line in lines),
            "export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",  # srun does not inherit it
            f'exec srun --quiet {python} "$SLURM_ARRAY_TASK_ID"',
            "",
        ]
    )


def _folder(task: Task) -> Path:
    assert task.log is not None  # as with every launcher but `local`
    return task.log.parent / "slurm"


def _called(*command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))


def _said(done: subprocess.CompletedProcess[str]) -> str:
    said = (done.stderr or done.stdout).strip().splitlines()
    if not said:
        return f"exit code {done.returncode}"
    return re.sub(r"^\w+: error: ", "", said[-1]).rstrip(".")
