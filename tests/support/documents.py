"""What stands in our Markdown files: code blocks and links, and a shell to run the blocks in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from tests.support.cli import REPOSITORY

__all__ = ["Block", "blocks", "copy_configs", "relative_links", "run_bash"]

_BLOCK = re.compile(r"(?:<!-- ([^\n]+?) -->\n)?```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)(?: \"[^\"]*\")?\)|src=\"([^\"]+)\"")


class Block(NamedTuple):
    """A fenced block."""

    mark: str  # the HTML comment directly before the fence, "" without one
    language: str
    text: str


def blocks(markdown: str) -> list[Block]:
    """All fenced blocks, in order."""
    return [Block(mark or "", lang, text) for mark, lang, text in _BLOCK.findall(markdown)]


def relative_links(markdown: str) -> list[str]:
    """Targets of links and pictures that are files of ours, without their anchors."""
    prose = _BLOCK.sub("", markdown)
    targets = (one or two for one, two in _LINK.findall(prose))
    return [
        target.partition("#")[0]
        for target in targets
        if not re.match(r"[a-z]+:", target) and not target.startswith("#")
    ]


def copy_configs(folder: Path) -> None:
    """The configs, and in them a quickstart of a tenth of its images and a quarter of its test."""
    shutil.copytree(REPOSITORY / "configs", folder / "configs")
    sizes = {"train_images": 10, "test_images": 4, "val_images": 4}
    for name in ("quickstart", "quickstart_source"):
        path = folder / "configs" / f"{name}.yaml"
        text, number = re.subn(
            r"(train_images|test_images|val_images): (\d+)",
            lambda found: f"{found[1]}: {int(found[2]) // sizes[found[1]]}",
            path.read_text(encoding="utf-8"),
        )
        assert number == len(sizes)
        path.write_text(text, encoding="utf-8")


def run_bash(script: str, folder: Path, *, code: Path, tools: Path, timeout_s: float = 600) -> str:
    """Run a script in a folder; what it printed. Fails with the first command that does.

    `tools` has the `kora` and `python` of this code, see `tests.support.kept`.
    """
    environment = {
        **os.environ,
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(code),
        "WANDB_MODE": "disabled",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=environment,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s,
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout
