"""The benchmark of the start runs in its smallest form: every command really answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import startup
from tests.support.benchmarks import refused, written


@pytest.mark.slow
def test_all_commands_answer_and_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ones = ("kora grid --dry_run", "kora fit --help all", "LightningCLI fit --help")
    for long in (*long_ones, startup.LIBRARIES, "the same after import kora"):
        monkeypatch.delitem(startup.COMMANDS, long)
    record, printed = written("startup", tmp_path, "--repeats", "1")
    assert list(record["commands"]) == list(startup.COMMANDS)
    for name, one in record["commands"].items():
        assert f"| `{name}` |" in printed
        assert one["seconds"][0] > 0
    # Quick are those that import no torch: tests/test_architecture.py says so as well.
    commands = [name for name in startup.COMMANDS if name.startswith("kora ")]
    assert len(commands) > 6
    quick = max(record["commands"][name]["cpu seconds"][0] for name in commands)
    assert quick < record["commands"]["import torch"]["cpu seconds"][0]


def test_a_command_that_fails_is_an_error_and_no_time() -> None:
    with pytest.raises(RuntimeError, match="ends with 2"):
        startup.spent([*startup.KORA, "nonsense"])


def test_a_wrong_option_is_one_clear_error() -> None:
    assert "expected 1 or more" in refused("startup", "--repeats", "0")
