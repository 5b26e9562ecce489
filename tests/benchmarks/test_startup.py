"""The benchmark of the start runs in its smallest form: every command really answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import startup
from tests.support.benchmarks import refused, written


@pytest.mark.slow
def test_all_commands_answer_and_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for long in ("kora fit --help all", "LightningCLI fit --help"):
        monkeypatch.delitem(startup.COMMANDS, long)
    record, printed = written("startup", tmp_path, "--repeats", "1")
    assert list(record["commands"]) == list(startup.COMMANDS)
    for name, one in record["commands"].items():
        assert f"| `{name}` |" in printed
        assert one["seconds"][0] > 0
    # Quick are those that import no torch: tests/test_architecture.py says so as well.
    quick = max(record["commands"][f"kora {c}"]["cpu seconds"][0] for c in ("--help", "list"))
    assert quick < record["commands"]["import torch"]["cpu seconds"][0]


def test_a_command_that_fails_is_an_error_and_no_time() -> None:
    with pytest.raises(RuntimeError, match="ends with 2"):
        startup.spent([*startup.KORA, "nonsense"])


def test_a_wrong_option_is_one_clear_error() -> None:
    assert "expected 1 or more" in refused("startup", "--repeats", "0")
