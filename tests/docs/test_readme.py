"""What the README shows can be done as it stands there, and no link leads nowhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import REPOSITORY, kora
from tests.support.commands import assert_accepted, kora_commands
from tests.support.documents import blocks, copy_configs, relative_links

Capture = pytest.CaptureFixture[str]

#: Its commands and files are those of an earlier commit, which it names.
ARCHIVE = REPOSITORY / "docs/results/archive.md"
_DOCS = sorted(set((REPOSITORY / "docs").rglob("*.md")) - {ARCHIVE})
DOCUMENTS = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *(str(path.relative_to(REPOSITORY)) for path in _DOCS),
]
#: Pages that `make docs` makes; it finds links to others that are not there.
MADE = {"reference/commands.md", "reference/config.md"}
#: Standing for a file of the user's. (What follows RUN is parsed: there need be no such run.)
PLACEHOLDER = re.compile(r"(?<![\w/])(FILE|FOLDER|STRATEGY|NAME)(?!\w)")


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def shell_blocks(name: str) -> list[str]:
    return [b.text for b in blocks(text_of(name)) if b.language in ("bash", "sh", "console")]


def without_new_files(name: str) -> list[str]:
    """Commands of a document, less those on files that its own steps make."""
    made = [b.mark.removeprefix("file: ") for b in blocks(text_of(name)) if b.mark[:5] == "file:"]
    found = [command for block in shell_blocks(name) for command in kora_commands(block)]
    return [command for command in found if not any(file in command for file in made)]


COMMANDS = [
    pytest.param(command, id=command)
    for command in dict.fromkeys(one for name in DOCUMENTS for one in without_new_files(name))
    if not PLACEHOLDER.search(command)
]
EXECUTED = [b for b in blocks(text_of("README.md")) if b.mark == "run"]


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the configs: what a command writes is not left in the repository."""
    folder = tmp_path_factory.mktemp("shown")
    for name in ("configs", "experiments"):
        (folder / name).symlink_to(REPOSITORY / name)
    return folder


@pytest.fixture(scope="module")
def make_targets() -> set[str]:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(
        ["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return {line.split()[0] for line in done.stdout.splitlines() if line.strip()}


def test_every_make_target_that_is_named_exists(make_targets: set[str]) -> None:
    for name in DOCUMENTS:
        named = set(re.findall(r"`make ([a-z][a-z-]*)", text_of(name)))
        for block in shell_blocks(name):
            named |= set(re.findall(r"^make ([a-z][a-z-]*)", block, re.MULTILINE))
        assert named <= make_targets, name


def test_the_two_commands_of_a_newcomer_are_in_the_readme(make_targets: set[str]) -> None:
    shown = "\n".join(shell_blocks("README.md"))
    assert "make demo" in shown
    assert "make test" in shown
    assert {"demo", "test", "help"} <= make_targets


def test_the_readme_shows_the_main_jobs() -> None:
    shown = " ".join(shell_blocks("README.md"))
    for config in ("quickstart", "tinyimagenet_transfer", "image_folder"):
        assert f"configs/{config}.yaml" in shown
    assert COMMANDS
    assert EXECUTED


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_is_shown_would_be_taken(
    command: str, beside: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(beside)
    assert_accepted(command, capfd, runs=False)  # tests/configs holds those of each grid


def test_every_relative_link_and_picture_exists() -> None:
    for name in DOCUMENTS:
        folder = (REPOSITORY / name).parent
        links = set(relative_links(text_of(name))) - MADE
        assert not [link for link in links if not (folder / link).exists()], name


def test_every_file_that_is_named_in_code_exists() -> None:
    code = re.compile(r"`((?:kora|datamodules|configs|tests|notebooks|docs)/[\w./-]+)`")
    for name in DOCUMENTS:
        made = {b.mark.partition(": ")[2] for b in blocks(text_of(name))}
        named = set(code.findall(text_of(name))) - made
        assert not [file for file in named if not (REPOSITORY / file).exists()], name


def test_every_test_that_is_named_exists() -> None:
    for name in DOCUMENTS:
        named = re.findall(r"`(tests/[\w/]+\.py)` `(test_\w+)`", text_of(name))
        for file, test in named:
            assert f"def {test}(" in (REPOSITORY / file).read_text("utf-8"), f"{name}: {test}"
        assert named or name != "docs/explanation/reliability.md"


@pytest.mark.slow
def test_the_marked_commands_run_in_the_order_of_the_readme(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_configs(tmp_path)
    monkeypatch.chdir(tmp_path)
    for block in EXECUTED:
        if block.language == "python":
            exec(block.text, {})
            continue
        commands = kora_commands(block.text)
        assert len(commands) == len(block.text.splitlines())
        for command in commands:
            outcome = kora(capfd, *shlex.split(command)[1:])
            assert outcome.code == 0, f"{command}\n{outcome.err}"
    assert list(Path("runs").rglob("results.json"))
    assert list(Path("runs").rglob("export.json"))


def test_all_python_of_the_readme_is_run() -> None:
    found = [b for b in blocks(text_of("README.md")) if b.language == "python"]
    assert found
    assert all(b.mark == "run" for b in found)
