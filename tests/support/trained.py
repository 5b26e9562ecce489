"""Trains once in the fork server of the tests, which imports this module last.

What torch and Lightning do at the first step of a process, its forks need not do again: a quarter
of what a tiny run takes.
"""

from __future__ import annotations

import os
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import datamodules.synthetic
from kora.cli import main
from tests.support.cli import tiny_config, write_config
from tests.support.rendered import remembered

__all__ = ["train"]


def train() -> None:
    """Train and test for two steps, and leave nothing but what is in memory."""
    with TemporaryDirectory() as folder, redirect_stdout(StringIO()):
        config = tiny_config(runs_dir=folder)
        main(["fit", "--config", str(write_config(Path(folder) / "tiny.yaml", config))])
    os.environ.pop("PL_GLOBAL_SEED")


datamodules.synthetic.render = remembered
train()
