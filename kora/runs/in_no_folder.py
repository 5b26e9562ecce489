"""Takes the fork server, which imports this module first, out of the folder of its parent.

Should that folder be deleted while the server imports, MKL would end it. Forks go to their own.
"""

from __future__ import annotations

import os

__all__ = ["leave"]


def leave() -> None:
    """Work in no folder that anybody deletes."""
    os.chdir("/")


leave()
