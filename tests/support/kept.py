"""`kora` and `python` for scripts and kernels, as forks of a process that has the imports."""

from __future__ import annotations

import array
import atexit
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from runpy import run_module, run_path
from typing import NoReturn

REPOSITORY = Path(__file__).parents[2]

_CLIENT = """#!{python} -ISE
import array, json, os, socket, sys
if sys.argv[1][:1] == "-" and sys.argv[1] not in ("-c", "-m", "-P", "-u"):
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as kept:
    kept.connect({address!r})
    streams = array.array("i", (0, 1, 2))
    kept.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    order = [sys.argv[1:], os.getcwd(), dict(os.environ)]
    kept.sendall(json.dumps(order).encode())
    kept.shutdown(socket.SHUT_WR)
    sys.exit(int(kept.recv(16) or 1))
"""


@contextmanager
def kept(code: Path, tools: Path) -> Iterator[None]:
    """While it lasts, `tools` holds the programs `kora` and `python` of this code.

    A `python` for `-m MODULE`, `-c CODE` and `FILE`, which is the `sys.executable` of what it
    runs too; other options begin anew. For this repository it is a fork of this process.
    """
    tools.mkdir()
    if code == REPOSITORY:
        with _by_a_fork(tools):
            yield
        return
    with subprocess.Popen(
        [sys.executable, "-P", Path(__file__), tools], cwd=tools,
        env={**os.environ, "PYTHONPATH": f"{code}{os.pathsep}{REPOSITORY}"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as server:  # fmt: skip
        assert server.stdout is not None
        server.stdout.read()
        try:
            yield
        finally:
            server.kill()


@contextmanager
def _by_a_fork(tools: Path) -> Iterator[None]:
    """Of this process, which has imported the same code, so that no other pays its imports."""
    from tests.support.forks import fork, keep_a_process, share_the_kept

    keep_a_process()
    (orders, mine), (there, ready) = os.pipe(), os.pipe()

    def serve() -> None:
        share_the_kept()
        for one in (orders, mine, there, ready):  # but for 0 and 1, which are two of them
            os.close(one)
        main(tools)

    process = fork(serve, ["kept"], (orders, ready, 2), tools, None)
    os.close(orders)
    os.close(ready)
    try:
        with open(there, "rb") as told:
            told.read()  # until they are there
        yield
    finally:
        os.close(mine)
        process.kill()
        process.wait()


def main(tools: Path) -> None:
    """Make the programs, and serve them until stdin ends."""
    from kora.runs.processes import _IMPORTED

    # The first two leave the folder and let garbage be; a program here keeps and collects its own.
    for module in _IMPORTED[2:]:
        import_module(module)
    address = str(tools / "socket")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as door, selectors.DefaultSelector() as selector:
        door.bind(address)
        door.listen()
        client = _CLIENT.format(python=sys.executable, address=address)
        kora = f'#!/bin/sh\nexec {tools}/python -m kora "$@"\n'
        for name, text in (("python", client), ("kora", kora)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        sys.executable = str(tools / "python")
        with open(os.devnull, "wb") as nothing:  # who waits for the programs sees the end of 1
            os.dup2(nothing.fileno(), 1)
        for one in (0, door):
            selector.register(one, selectors.EVENT_READ)
        while all(key.fileobj != 0 for key, _ in selector.select()):
            guest, _ = door.accept()
            if not os.fork():
                door.close()
                try:
                    _serve(guest)
                finally:
                    os._exit(1)
            guest.close()


def _serve(guest: socket.socket) -> NoReturn:
    from kora.runs.processes import PARENT_PID, _end_with_parent
    from tests.support.forks import fork

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent()
    streams = array.array("i")
    _, more, *_ = guest.recvmsg(1, socket.CMSG_SPACE(3 * streams.itemsize))
    streams.frombytes(more[0][2])
    with guest.makefile("rb") as order:
        words, folder, environment = json.load(order)
    environment.pop(PARENT_PID, None)  # a fork has another parent
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def program() -> None:
        guest.close()
        _end_with_parent()
        _run(words)

    process = fork(program, words, streams, Path(folder), environment)
    guest.sendall(str(process.wait() % 256).encode())
    os._exit(0)


def _run(words: list[str]) -> None:
    from kora.runs.processes import _forget_exits

    _forget_exits()
    while words[0] in ("-P", "-u"):
        del words[0]
    is_module = words[0] == "-m"
    if is_module:
        del words[0]
    try:
        if is_module:
            run_module(words[0], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            exec(words.pop(1), {"__name__": "__main__"})
        else:
            run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def _share_imports() -> None:
    """Let the runs, and the source stages, of all programs be forks of one process."""
    import kora.training.stages
    from kora.runs.processes import run_child
    from tests.support.forks import keep_a_process, share_the_kept

    kora.training.stages.run_child = partial(run_child, more_follow=True)
    ready = os.dup(1)
    os.dup2(2, 1)  # it does not hold what tells that the programs are there
    keep_a_process()
    os.dup2(ready, 1)
    os.close(ready)
    share_the_kept()


if __name__ == "__main__":
    _share_imports()
    main(Path(sys.argv[1]))
