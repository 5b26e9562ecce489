"""Getting data survives what happens to a process: killed for real, twice at once, a full disk."""

from __future__ import annotations

import http.server
import json
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datamodules.download import file_md5
from tests.support.cli import started
from tests.support.data_factory import LIGHT, write_tiny_imagenet_zip

pytestmark = pytest.mark.slow
FILES = 6000
#: Makes a folder as every data module does that has an archive; its options come as JSON.
OBTAIN = f"""{LIGHT}
import json
from pathlib import Path
from datamodules.download import obtain_folder
options = json.loads(sys.argv[2])
if "archive" in options:
    options["archive"] = Path(options["archive"])
print("ready", flush=True)
sys.stdin.readline()
obtain_folder(Path(sys.argv[1]), **options)
"""


def obtain(folder: Path, **options: Any) -> subprocess.Popen[str]:
    """A process that has imported all it needs and waits for a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", OBTAIN, str(folder), json.dumps(options)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", process.communicate()
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and error of a process that was told to go."""
    _, error = process.communicate(timeout=120)
    return process.returncode, error


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "many.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(FILES):
            file.writestr(f"data/{number:05d}.txt", f"{number}\n" * 50)
    return path


def complete(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    return names == {f"{number:05d}.txt" for number in range(FILES)} and all(
        (folder / name).read_text() == f"{int(name[:5])}\n" * 50 for name in names
    )


def killed_in_mid_extraction(folder: Path, archive: Path) -> int:
    """Kill the process when some files, and not all, are there; returns their number."""
    process = obtain(folder, archive=str(archive), inside="data")
    go(process)
    end = time.monotonic() + 60
    while len(found := list(folder.parent.rglob("*.txt"))) < 100:
        assert time.monotonic() < end
    process.kill()
    assert process.wait() == -signal.SIGKILL
    return len(found)


def test_killed_while_extracting_it_does_not_look_ready_and_starts_again(
    tmp_path: Path, archive: Path
) -> None:
    folder = tmp_path / "root" / "data"
    assert 100 <= killed_in_mid_extraction(folder, archive) < FILES
    assert not folder.exists()
    again = obtain(folder, archive=str(archive), inside="data")
    go(again)
    assert finish(again)[0] == 0
    assert complete(folder)
    left = {path.name for path in folder.parent.iterdir()}
    assert left <= {"data", ".data.lock"}


def test_two_processes_extract_once_also_after_a_third_was_killed(
    tmp_path: Path, archive: Path
) -> None:
    folder = tmp_path / "root" / "data"
    killed_in_mid_extraction(folder, archive)
    both = [obtain(folder, archive=str(archive), inside="data") for _ in range(2)]
    for process in both:
        go(process)
    inodes: set[int] = set()
    while any(process.poll() is None for process in both):
        if folder.exists():  # it appears whole, and is not made a second time
            inodes.add(folder.stat().st_ino)
            assert len(list(folder.glob("*.txt"))) == FILES
    assert [finish(process)[0] for process in both] == [0, 0]
    assert len(inodes) <= 1
    assert complete(folder)


class Slow(http.server.BaseHTTPRequestHandler):
    """Sends half of the file and then waits, until it is told to go on."""

    def do_GET(self) -> None:
        server: Any = self.server
        asked = self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked[6:-1]) if asked else 0
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            size = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            server.go_on.wait(60)
            self.wfile.write(body[len(body) // 2 :])
        except OSError:
            pass  # the other side was killed

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(archive: Path) -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.content, server.asked = archive.read_bytes(), []
        server.go_on = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.go_on.set()
        server.shutdown()
        thread.join()


def test_killed_while_downloading_it_goes_on_where_it_was_and_two_ask_once(
    tmp_path: Path, archive: Path, server: Any
) -> None:
    folder = tmp_path / "root" / "data"
    options = {
        "url": f"http://127.0.0.1:{server.server_port}/many.zip",
        "md5": file_md5(archive),
        "inside": "data",
    }
    first = obtain(folder, **options)
    go(first)
    part = folder.parent / ".many.zip.part"
    end = time.monotonic() + 60
    while not part.is_file() or part.stat().st_size < 200_000:
        assert time.monotonic() < end
    first.kill()
    first.wait()
    assert not folder.exists()
    server.go_on.set()
    both = [obtain(folder, **options) for _ in range(2)]
    for process in both:
        go(process)
    assert [finish(process)[0] for process in both] == [0, 0]
    assert server.asked[0] is None
    assert len(server.asked) == 2  # the killed one, and one of the two
    assert int(server.asked[1][6:-1]) >= 200_000
    assert complete(folder)


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, archive: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=2m tmpfs {disk}"
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], check=False).returncode:
        pytest.skip("this system lets nobody mount a small disk")
    code = LIGHT + (
        "import os; from pathlib import Path; from datamodules.download import obtain_folder\n"
        "try:\n    obtain_folder(Path(sys.argv[1], 'data'), archive=Path(sys.argv[2]))\n"
        "except OSError as error:\n    print(error)\n"
        "print(sorted(os.listdir(sys.argv[1])))"
    )
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f'{mount} && "$0" -c "$1" "$2" "$3"',
         sys.executable, code, str(disk), str(archive)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    message, left = done.stdout.rstrip().rsplit("\n", 1)
    assert f"no room to extract {archive}" in message
    assert "data.root" in message
    assert left in ("[]", "['.data.lock']")


def test_two_kora_data_prepare_at_once_make_one_whole_data_set(tmp_path: Path) -> None:
    archive = write_tiny_imagenet_zip(tmp_path / "tiny.zip")
    config = tmp_path / "data.yaml"
    config.write_text(
        json.dumps(
            {
                "model": {
                    "class_path": "kora.tasks.ClassificationTask",
                    "init_args": {"backbone": {"name": "vit_nano"}},
                },
                "data": {
                    "class_path": "datamodules.TinyImageNet",
                    "init_args": {
                        "root": str(tmp_path / "root"), "archive": str(archive),
                        "classes": "0:4", "val_images": 8,
                    },
                },
            }
        ),
        encoding="utf-8",
    )  # fmt: skip
    prepare, one, two = ("data", "prepare", "--config", config), tmp_path / "1", tmp_path / "2"
    with started(*prepare, log=one) as first, started(*prepare, log=two) as second:
        assert [first.wait(), second.wait()] == [0, 0], one.read_text() + two.read_text()
    out = one.read_text()
    with zipfile.ZipFile(archive) as file:
        expected = {name for name in file.namelist() if not name.endswith("/")}
    folder = tmp_path / "root" / "tiny-imagenet-200"
    found = {str(path.relative_to(folder.parent)) for path in folder.rglob("*") if path.is_file()}
    assert found - {"tiny-imagenet-200/.source.json"} == expected
    assert "52 decoded images" in out
