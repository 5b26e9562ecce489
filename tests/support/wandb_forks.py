"""Runs of `kora fit`, each in a fork of a process that has imported everything once.

Reads a JSON list of runs, each with its folder and its environment, and prints a list of their exit
codes and of the times at which they ended. The output of each is out.txt in its folder.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["REPORTER", "run_forks"]

_AT_ONCE = 6

#: A module with a callback: it notes when W&B has started, and can kill the process of W&B.
REPORTER = """
import os
import signal
import time
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class Reporter(Callback):
    def __init__(self, kill_at: str = "never") -> None:
        self.kill_at = kill_at

    def setup(self, trainer, module, stage):
        if stage == "fit":
            Path("started.txt").write_text(str(time.time()))
            self.reached("the start")

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == 2:
            self.reached("a step")

    def on_test_end(self, *args):
        self.reached("the end")

    def reached(self, place):
        if place != self.kill_at:
            return
        time.sleep(1.5)  # W&B writes once a second
        for child in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
            for pid in map(int, child.read_text().split()):
                if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    print("killed", pid)
        time.sleep(0.2)
"""


def run_forks(
    runs: Sequence[Mapping[str, Any]], *, timeout_s: float = 900
) -> list[tuple[int, float]]:
    """Run them, some at once; the exit code of each, and the time at which it ended."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.wandb_forks"], input=json.dumps(list(runs)),
        stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return [(code, at) for code, at in json.loads(done.stdout)]


def _fit(run: Mapping[str, Any]) -> None:
    """What a process of its own would do; it ends as one, with all that runs at exit."""
    from kora.cli import main

    os.chdir(run["folder"])
    sys.path.insert(0, run["folder"])
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        del os.environ[name]
    os.environ.update(run["environment"])
    out = os.open("out.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    main(["fit", "--config", "tiny.yaml"])


def _fork_all(runs: Sequence[Mapping[str, Any]]) -> None:
    # Each fork has a wandb of its own: it has a temporary folder, which the first to end removes.
    sys.modules["wandb"] = None
    import kora.training.lightning_cli  # noqa: F401

    del sys.modules["wandb"]
    numbers: dict[int, int] = {}
    ends = [(0, 0.0)] * len(runs)

    def wait() -> None:
        pid, status = os.wait()
        ends[numbers.pop(pid)] = os.waitstatus_to_exitcode(status), time.time()

    for number, run in enumerate(runs):
        if len(numbers) == _AT_ONCE:
            wait()
        pid = os.fork()
        if not pid:
            _fit(run)
            return
        numbers[pid] = number
    while numbers:
        wait()
    print(json.dumps(ends))


if __name__ == "__main__":
    _fork_all(json.load(sys.stdin))
