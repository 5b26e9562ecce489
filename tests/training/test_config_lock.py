"""A lock for each config costs a process that only waits for runs next to nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

JOB = """
import sys
import kora.grid.launchers.job
from kora.training.config_lock import alone_with, is_taken
config = {"runs_dir": "runs", "experiment": "tiny", "seed_everything": 0, "trainer": {}}
with alone_with(config, say=print) as mine:
    print(mine)
print(is_taken(config), "torch" in sys.modules)
"""


def test_a_job_that_starts_a_run_imports_no_torch_itself(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", JOB], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "False", "False"]
