"""Whether a `kora ...` command that a text shows is one that the command line would take."""

from __future__ import annotations

import os
import shlex
from contextvars import copy_context
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest

from kora.cli import main
from kora.cli.dispatch import _with_configs
from kora.grid.command import grid_parser
from kora.grid.file import read_grid
from kora.grid.options import picked
from kora.training.lightning_cli import KoraCLI, parse
from kora.training.parser import remember
from kora.tune.command import tune_parser
from kora.tune.file import read_tuning

__all__ = ["assert_accepted", "kora_commands", "parsed"]

_LIGHTNING = ("fit", "validate", "test", "predict")
#: In this, what configs have in common is worked out once.
_remembering = copy_context()
_remembering.run(remember)


def kora_commands(text: str) -> list[str]:
    """The lines of a shell text that call kora, without variables set before it and comments."""
    commands = []
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and "=" in words[0]:
            words.pop(0)
        if words and words[0] == "kora":
            commands.append(shlex.join(words))
    return commands


def parsed(*args: str) -> KoraCLI:
    """What `kora.training.lightning_cli.parse` makes of these, once: it takes its time."""
    return _parsed(Path.cwd(), *args)


@cache
def _parsed(folder: Path, *args: str) -> KoraCLI:
    return _remembering.run(parse, args)


def assert_accepted(command: str, capfd: pytest.CaptureFixture[str], *, runs: bool = True) -> None:
    """Parse a command with the real parsers: its configs exist and its options are known.

    Those of the runs of a grid or a search too, unless `runs` is False.
    """
    name, *args = shlex.split(command)[1:]
    seed = os.environ.get("PL_GLOBAL_SEED")
    code: int | str | None = 0
    try:
        if name in _LIGHTNING and "--images" not in args:
            parsed(name, *_with_configs(args))
        elif name in ("params", "data") and "--match" not in args:
            own = ("--json", "describe", "prepare")
            parsed("fit", *(arg for arg in _with_configs(args) if arg not in own))
        elif name in ("grid", "tune") and not runs:
            _assert_names_of_a_grid(name, args)
        elif name in ("grid", "tune"):
            # Each of their runs is parsed once, in however many commands it is.
            with patch("kora.training.lightning_cli.parse", lambda args: parsed(*args)):
                main([name, *args, "--dry_run"])
        else:
            # These load nothing big before they know that they like their options.
            main([name, *args])
    except SystemExit as stop:
        code = stop.code
    finally:
        if seed is None:
            os.environ.pop("PL_GLOBAL_SEED", None)
        else:
            os.environ["PL_GLOBAL_SEED"] = seed
    err = capfd.readouterr().err
    # These rightly miss runs that nobody has trained here, pictures, and a login.
    reads_runs = (
        "adapt", "cka", "compare", "dashboard", "export", "inspect", "paper", "predict", "push"
    )  # fmt: skip
    found = name == "grid" and any(arg.startswith("runs/tune_") for arg in args)  # by kora tune
    missing = (name in reads_runs or found) and "usage:" not in err
    assert not code or missing, f"{command}\n{err}"


def _assert_names_of_a_grid(name: str, args: list[str]) -> None:
    """The grid can be read, and each text of `--only` picks something of it."""
    own = (grid_parser if name == "grid" else tune_parser)().parse_args(args)
    path = Path(own.config)
    if path.exists() or not own.config.startswith("runs/"):
        read = (lambda *of: read_tuning(*of).grid) if name == "tune" else read_grid
        grid = read(path, own.overrides)
        picked(path, "run", {job.name: job.kind or job.name for job in grid.jobs()}, own.only)
