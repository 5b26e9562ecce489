"""Where a result comes from: the versions and the commit of the code that made it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import kora

__all__ = ["collect_versions", "git_commit"]

_PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "timm",
    "torchmetrics",
    "numpy",
    "safetensors",
    "jsonargparse",
    "wandb",
)


def collect_versions() -> dict[str, str]:
    """Versions of Python, KoRA and the installed packages that affect a result."""
    versions = {"python": platform.python_version(), "kora": kora.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_commit() -> str | None:
    """Commit of the source tree that `kora` runs from, with `+dirty` when its code is changed.

    None when that is no checkout of KoRA (an installed package), or git does not answer. A
    repository that merely contains the virtual environment does not count.
    """
    package = Path(kora.__file__).resolve().parent
    # Inside a git hook these would point at the wrong repository.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0"}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2,
            check=True,
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        commit = git("rev-parse", "HEAD")
        # Only code: changed notes or pictures do not change a result.
        dirty = git("status", "--porcelain", "--", ".", ":(top)datamodules")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+dirty" if dirty else commit
