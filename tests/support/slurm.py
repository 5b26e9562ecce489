"""A SLURM of one machine: `sbatch`, `squeue`, `scancel`, `srun` that run arrays as processes.

    python slurm.py COMMAND ARGS ...

What it does not have: time limits, other users, several machines. The folder SLURM_HERE holds a
folder for each array, with the process of each element.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

COMMANDS = ("sbatch", "squeue", "scancel", "srun")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a cluster whose commands are on the path; its jobs are gone at the end."""
    here, programs = tmp_path / "slurm", tmp_path / "bin"
    here.mkdir()
    programs.mkdir()
    for name in COMMANDS:
        path = programs / name
        path.write_text(f'#!/bin/sh\nexec {sys.executable} {__file__} {name} "$@"\n')
        path.chmod(0o755)
    monkeypatch.setenv("SLURM_HERE", str(here))
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    yield here
    for _, _, pid in _alive(here):
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def _alive(here: Path) -> Iterator[tuple[str, int, int]]:
    """Name and number of the elements that run, and their process groups."""
    for path in sorted(here.glob("*/*.pid")):
        pid = int(path.read_text())
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                yield path.parent.name, int(path.stem), pid


def _options(script: str) -> dict[str, str]:
    lines = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    options = {}
    for line in lines:
        (word,) = shlex.split(line)  # as sbatch does, which refuses a second one
        name, _, value = word.removeprefix("--").partition("=")
        options[name] = value
    return options


def _sbatch(here: Path, args: list[str]) -> int:
    refusal = here / "refuse"
    if refusal.exists():
        print(f"sbatch: error: {refusal.read_text()}", file=sys.stderr)
        return 1
    script = Path(args[-1]).read_text()
    options = _options(script)
    folder = here / options["job-name"]
    folder.mkdir()
    identity = {"id": len([*here.glob("*/options.json")]) + 7}
    (folder / "options.json").write_text(json.dumps(options | identity))
    first, last = map(int, options["array"].split("-"))
    for number in range(first, last + 1):
        out = Path(options["output"].replace("%a", str(number)))
        env = {**os.environ, "SLURM_ARRAY_TASK_ID": str(number)}
        env["SLURM_CPUS_PER_TASK"] = options["cpus-per-task"]
        with out.open("ab") as file:
            process = subprocess.Popen(
                ["bash", args[-1]], env=env, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )  # fmt: skip
        (folder / f"{number}.pid").write_text(str(process.pid))
    print(_id(folder))
    return 0


def _id(folder: Path) -> str:
    """Number of an array."""
    return str(json.loads((folder / "options.json").read_text())["id"])


def _squeue(here: Path) -> int:
    if (here / "silent").exists():
        print("squeue: error: Unable to contact slurm controller", file=sys.stderr)
        return 1
    print("someone-else|9|N/A|RUNNING|node1|None")
    for name, number, _ in _alive(here):
        print(f"{name}|{_id(here / name)}|{number}|RUNNING|node1|None")
    return 0


def _scancel(here: Path, args: list[str]) -> int:
    names = {arg.removeprefix("--name=") for arg in args if arg.startswith("--name=")}
    for one, number, pid in _alive(here):
        if one in names or f"{_id(here / one)}_{number}" in args:
            os.kill(pid, signal.SIGTERM)
    return 0


def _main(command: str, args: list[str]) -> int:
    here = Path(os.environ["SLURM_HERE"])
    if command == "sbatch":
        return _sbatch(here, args)
    if command == "squeue":
        return _squeue(here)
    if command == "scancel":
        return _scancel(here, args)
    words = args[args.index("--quiet") + 1 :]
    return os.execv(words[0], words)


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], sys.argv[2:]))
