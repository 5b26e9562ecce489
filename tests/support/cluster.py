"""A Ray cluster of two nodes, and a way to lose one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.cli import REPOSITORY

__all__ = ["TwoNodes", "cluster", "needs_ray"]


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
        assert self.process.stdin is not None
        print("lose", file=self.process.stdin, flush=True)
        assert self._answer() == "removed\n"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the cluster did not start"
        return line


@pytest.fixture
def cluster() -> Iterator[TwoNodes]:
    """Two nodes of one core each."""
    needs_ray()
    with subprocess.Popen(
        [sys.executable, REPOSITORY / "tests/support/ray_cluster.py"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ
        | {"PYTHONPATH": str(REPOSITORY)}
        | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"},
    ) as process:  # fmt: skip
        yield TwoNodes(process)
