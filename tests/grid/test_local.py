"""Tasks side by side keep to their folder, whatever folder the process is in meanwhile."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

import pytest

from kora.grid.dispatch import Ended, Task
from kora.grid.file import Job
from kora.grid.launchers.local import here as launcher
from kora.grid.plan import NEW, Entry, resolved
from kora.runs.processes import Stop
from tests.support.cli import tiny_config, write_config

pytestmark = pytest.mark.slow


def test_a_parser_that_changes_the_folder_of_the_process_moves_no_task(here: Path) -> None:
    # jsonargparse reads a config in the folder of its file, while other threads start runs.
    (here / "configs").mkdir()
    write_config(here / "tiny.yaml", tiny_config())
    config = resolved(Path("tiny.yaml"), Job("one", ("--config", "tiny.yaml")))
    job = Job("one", ("--help",))
    task = Task(Entry(1, job, config, NEW, None), [(job, config)], Path("logs/one.log"))
    with launcher(1, {}, Stop()) as local, chdir(here / "configs"):
        local.start(task)
        while not isinstance(found := local.events()[0], Ended):
            pass
    assert found.outcomes[0].why == "ended without a result"  # help is no run
    assert "kora fit" in (here / "logs/one.log").read_text()
    assert not list((here / "configs").iterdir())
