"""A Ray cluster of two nodes, and a way to lose one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.cli import REPOSITORY

__all__ = ["TwoNodes", "cluster", "needs_ray", "nodes"]


def needs_ray() -> None:
    # It is not imported, see tests/support/ray_cluster.py.
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'kora-vit[ray]'")


class TwoNodes:
    """Talks to tests/support/ray_cluster.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address, self.other = self._answer().split()

    def lose_the_other(self) -> None:
        """Kill its processes; returns when they are gone."""
        self._say("lose")
        self.other = ""
        assert self._answer() == "removed\n"

    def be_two(self) -> None:
        """Bring another node where one was lost."""
        if not self.other:
            self._say("add")
            self.other = self._answer().strip()

    def _say(self, word: str) -> None:
        assert self.process.stdin is not None
        print(word, file=self.process.stdin, flush=True)

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the cluster did not start"
        return line


@pytest.fixture(scope="module")
def nodes() -> Iterator[TwoNodes]:
    """Only as long as a module needs it: idle, it costs 15 CPU seconds in ten minutes."""
    needs_ray()
    of_a_run = {"LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "PL_GLOBAL_SEED"}
    kept = {name: value for name, value in os.environ.items() if name not in of_a_run}
    with subprocess.Popen(
        [sys.executable, REPOSITORY / "tests/support/ray_cluster.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=kept
        | {"PYTHONPATH": str(REPOSITORY)}
        | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
        | {"RAY_health_check_period_ms": "300"},
    ) as process:  # fmt: skip
        yield TwoNodes(process)


@pytest.fixture
def cluster(nodes: TwoNodes) -> TwoNodes:
    """Two nodes of one core each."""
    nodes.be_two()
    return nodes
