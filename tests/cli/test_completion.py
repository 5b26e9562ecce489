"""`kora completion`: what Tab completes, asked of bash itself."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kora.cli import main
from kora.cli.dispatch import _COMMANDS
from kora.training.lightning_cli import parse
from tests.support.cli import REPOSITORY

Completes = Callable[..., set[str]]


@pytest.fixture(scope="module")
def completes(tmp_path_factory: pytest.TempPathFactory) -> Completes:
    folder = tmp_path_factory.mktemp("completion")
    script = folder / "kora.bash"
    with pytest.MonkeyPatch.context() as patch, script.open("w") as out:
        patch.setattr("sys.stdout", out)
        main(["completion", "bash"])

    def found(*words: str) -> set[str]:
        line = f"""
            source {shlex.quote(str(script))}
            function=$(complete -p kora | sed 's/.*-F //; s/ kora//')
            COMP_WORDS=({shlex.join(("kora", *words))}); COMP_CWORD={len(words)}
            "$function"; printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        told = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True)
        assert not told.stderr
        return set(told.stdout.split())

    return found


def test_every_command_completes(completes: Completes) -> None:
    assert completes("") == {*_COMMANDS}
    assert completes("pre") == {"predict"}


def test_options_of_a_command_complete(completes: Completes) -> None:
    assert completes("adapt", "--mi") == {"--minutes"}
    assert {"--config", "--jobs", "--launcher", "--dry_run"} <= completes("grid", "--")
    assert completes("export", "--format", "") == {"peft", "timm", "onnx"}


def test_options_of_a_fit_complete_those_of_classes_too(completes: Completes) -> None:
    assert {"--trainer.max_epochs", "--trainer.precision"} <= completes("fit", "--trainer.")
    assert "--model.backbone.weights" in completes("fit", "--model.")


def test_the_parser_of_a_fit_stays_as_it_was(completes: Completes) -> None:
    parser = parse(["fit", "--config", f"{REPOSITORY}/configs/quickstart.yaml"]).parser_of("fit")
    assert completes("fit", "--data.ro") == {"--data.root"}
    assert "--data.root" not in parser._option_string_actions


def test_a_folder_completes_where_one_is_meant(completes: Completes, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert completes("adapt", f"{tmp_path}/") == {f"{tmp_path}/photos"}
