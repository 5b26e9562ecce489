"""Claims about getting data, against a real HTTP server."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from datamodules import download as module
from datamodules.download import download, expand_path, file_md5, obtain_folder
from tests.support.data_factory import write_zip


class Server(ThreadingHTTPServer):
    """Serves `content` at any path, with or without ranges, and can break connections."""

    content = b""
    ranges = True
    status = 200
    breaks: list[int]  # for the next answers: bytes to send before the connection is cut
    asked: list[str | None]  # the Range header of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/x.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        start = int(asked[6:-1]) if asked and server.ranges else 0
        if server.status != 200:
            self.send_error(server.status)
            return
        if start >= len(server.content):
            self.send_error(416)
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            end = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{end + 1}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.breaks.pop(0)] if server.breaks else body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module.time, "sleep", lambda seconds: None)
    archive = write_zip(tmp_path / "made.zip", {"data/a.bin": bytes(range(256)) * 4000})
    with Server(("127.0.0.1", 0), Handler) as server:
        server.content = archive.read_bytes()
        server.breaks, server.asked = [], []
        archive.unlink()
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def md5_of(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_a_file_arrives_whole_and_under_its_name_only(server: Server, tmp_path: Path) -> None:
    download(server.url, tmp_path / "x.zip", md5=md5_of(server.content))
    assert (tmp_path / "x.zip").read_bytes() == server.content
    assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]


def test_a_partial_file_is_resumed(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".x.zip.part").write_bytes(server.content[:1000])
    download(server.url, tmp_path / "x.zip", md5=md5_of(server.content))
    assert server.asked == ["bytes=1000-"]
    assert (tmp_path / "x.zip").read_bytes() == server.content


def test_a_partial_file_that_was_complete_needs_no_bytes(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".x.zip.part").write_bytes(server.content)
    download(server.url, tmp_path / "x.zip", md5=md5_of(server.content))
    assert (tmp_path / "x.zip").read_bytes() == server.content


def test_a_broken_connection_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.breaks = [300_000, 400_000]
    download(server.url, tmp_path / "x.zip", md5=md5_of(server.content))
    assert (tmp_path / "x.zip").read_bytes() == server.content
    starts = [int(asked[6:-1]) if asked else 0 for asked in server.asked]
    assert len(starts) == 3
    # A piece of 64 KiB that was cut short is asked for again.
    assert starts[0] == 0
    assert 300_000 - 65_536 < starts[1] <= 300_000
    assert starts[1] + 400_000 - 65_536 < starts[2] <= starts[1] + 400_000


def test_a_server_without_ranges_sends_everything_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / ".x.zip.part").write_bytes(b"old" * 100)
    download(server.url, tmp_path / "x.zip", md5=md5_of(server.content))
    assert (tmp_path / "x.zip").read_bytes() == server.content


def test_a_partial_file_of_an_older_version_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".x.zip.part").write_bytes(b"old" * 100)
    download(server.url, tmp_path / "x.zip", md5=md5_of(server.content))
    assert server.asked == ["bytes=300-", None]
    assert (tmp_path / "x.zip").read_bytes() == server.content


def test_a_wrong_checksum_names_both_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    expected = "0" * 32
    found = md5_of(server.content)
    with pytest.raises(RuntimeError, match=f"{server.url} has md5 {found}, expected {expected}"):
        download(server.url, tmp_path / "x.zip", md5=expected)
    assert list(tmp_path.iterdir()) == []


def test_no_network_says_the_url_the_place_and_the_checksum(tmp_path: Path) -> None:
    with Server(("127.0.0.1", 0), Handler) as closed:
        url = closed.url
    with pytest.raises(RuntimeError) as caught:
        obtain_folder(tmp_path / "data", url=url, md5="0" * 32)
    message = str(caught.value)
    for part in (url, "no network", str(tmp_path / "x.zip"), "md5 " + "0" * 32, "data.archive"):
        assert part in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 4)])
def test_only_a_server_in_trouble_is_asked_again(
    server: Server, tmp_path: Path, status: int, requests: int
) -> None:
    server.status = status
    with pytest.raises(RuntimeError, match=f"HTTP status {status}"):
        download(server.url, tmp_path / "x.zip", md5=md5_of(server.content))
    assert len(server.asked) == requests
    assert list(tmp_path.iterdir()) == []


def test_two_processes_download_once(server: Server, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    options = {"url": server.url, "md5": md5_of(server.content), "inside": "data"}
    both = [
        context.Process(target=obtain_folder, args=(tmp_path / "data",), kwargs=options)
        for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(30)
    assert [process.exitcode for process in both] == [0, 0]
    assert server.asked == [None]
    assert (tmp_path / "data" / "a.bin").stat().st_size == 256 * 4000


def test_an_existing_folder_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    obtain_folder(tmp_path / "data", url="http://127.0.0.1:9/x.zip", md5="0" * 32)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine.txt"]


def test_an_archive_put_there_by_hand_is_used_if_it_is_the_right_one(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", {"data/a.txt": b"a"})
    url = "http://127.0.0.1:9/x.zip"
    with pytest.raises(RuntimeError, match=rf"{archive} has md5 \w+, expected 000"):
        obtain_folder(tmp_path / "data", url=url, md5="0" * 32, inside="data")
    assert not (tmp_path / "data").exists()
    obtain_folder(tmp_path / "data", url=url, md5=file_md5(archive), inside="data")
    assert (tmp_path / "data" / "a.txt").read_text() == "a"


def test_a_local_archive_needs_no_checksum_and_only_once(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "small.zip", {"data/a.txt": b"a"})
    options = {"archive": archive, "url": "http://127.0.0.1:9/x.zip", "md5": "0" * 32}
    obtain_folder(tmp_path / "root" / "data", inside="data", **options)
    archive.unlink()
    obtain_folder(tmp_path / "root" / "data", inside="data", **options)
    assert (tmp_path / "root" / "data" / "a.txt").exists()


def test_a_folder_made_from_another_archive_is_not_taken_for_the_official_one(
    tmp_path: Path,
) -> None:
    small = write_zip(tmp_path / "small.zip", {"data/a.txt": b"a"})
    other = write_zip(tmp_path / "other.zip", {"data/b.txt": b"bbb"})
    folder = obtain_folder(tmp_path / "data", archive=small, inside="data")
    with pytest.raises(ValueError, match=r"extracted from small\.zip .* the official archive"):
        obtain_folder(folder, url="http://127.0.0.1:9/x.zip", md5="0" * 32)
    with pytest.raises(ValueError, match=rf"extracted from small\.zip .*asks for {other}"):
        obtain_folder(folder, archive=other, inside="data")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_damaged_note_on_the_archive_of_a_folder_is_told(tmp_path: Path, content: bytes) -> None:
    small = write_zip(tmp_path / "small.zip", {"data/a.txt": b"a"})
    folder = obtain_folder(tmp_path / "data", archive=small, inside="data")
    (folder / ".source.json").write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"{folder}/\.source\.json is damaged.*Delete {folder}"):
        obtain_folder(folder, archive=small, inside="data")


def test_a_missing_archive_and_nothing_to_extract_are_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"data\.archive: there is no file .*gone\.zip"):
        obtain_folder(tmp_path / "data", archive=tmp_path / "gone.zip")
    with pytest.raises(FileNotFoundError, match=re.escape(f"no data in {tmp_path / 'data'}")):
        obtain_folder(tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_paths_expand_the_home_folder_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KORA_TEST_DATA", "/some/where")
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("KORA_TEST_UNSET", raising=False)
    assert expand_path("$KORA_TEST_DATA/x", key="data.root") == Path("/some/where/x")
    assert expand_path("${KORA_TEST_DATA}/x", key="data.root") == Path("/some/where/x")
    assert expand_path("~/x", key="data.root") == Path("/home/me/x")
    with pytest.raises(ValueError, match=r"data\.root .*variable KORA_TEST_UNSET is not set"):
        expand_path("$KORA_TEST_UNSET/x", key="data.root")
