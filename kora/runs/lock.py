"""The run lock: one process trains a run at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TextIO

from kora.runs.durable import plainly

__all__ = ["RunLock"]

_TRIES = 10  # then it is locked as it is: some file systems number an open file anew each time


class RunLock:
    """The lock of a run folder. The system releases it when the process ends.

    Raises:
        RuntimeError: Another process holds it.
    """

    NAME = ".running"

    def __init__(self, folder: Path) -> None:
        self.path = folder / self.NAME
        self._file = self._locked(folder)
        for _ in range(_TRIES):
            if self._is_there():
                break
            self._file.close()  # its holder removed it meanwhile, and nobody would see this lock
            self._file = self._locked(folder)
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def _locked(self, folder: Path) -> TextIO:
        # Kept open: closing it releases the lock. A link or a pipe of that name is refused.
        file = open(self.path, "a", opener=plainly)  # noqa: SIM115
        try:
            # Not flock: worker processes would inherit it, and hold it some time after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise RuntimeError(
                f"Another process is at work on the run {folder}. Wait for it, or stop it first; "
                "without --ckpt_path or --resume, this command starts a new run."
            ) from None
        except OSError:
            pass  # a file system without locks
        return file

    def _is_there(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Release the lock."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    @classmethod
    def is_held(cls, folder: Path) -> bool:
        """Whether another process holds the lock of a folder."""
        path = folder / cls.NAME
        if not path.is_file():
            return False
        with open(path, opener=plainly) as file:
            try:
                # A shared one, for which a folder that can only be read is enough.
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            except OSError:
                return False
        return False
