"""Claims about getting NYU Depth V2, against a real HTTP server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules import NYUDepthV2
from datamodules.download import file_md5
from datamodules.nyu import depth_v2
from tests.support.depth_factory import write_frame_folders, write_labelled, write_splits

MAT = "nyu_depth_v2_labeled.mat"


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that the official addresses lead to, with both files in it."""
    folder = tmp_path / "site"
    files = {
        "LABELLED": write_labelled(folder / MAT),
        "SPLITS": write_splits(folder / "splits.mat"),
    }
    handler = partial(Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        for name, path in files.items():
            url = f"http://127.0.0.1:{server.server_port}/{path.name}"
            monkeypatch.setattr(depth_v2, f"{name}_URL", url)
            monkeypatch.setattr(depth_v2, f"_{name}_MD5", file_md5(path))
        thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        yield folder
        server.shutdown()
        thread.join()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


@pytest.mark.parametrize("before", ["nothing", "empty", "interrupted", "splits"])
def test_an_empty_root_is_filled(site: Path, tmp_path: Path, before: str) -> None:
    root = tmp_path / "data" / "nyu"
    if before != "nothing":
        root.mkdir(parents=True)
    if before == "interrupted":
        (root / f".{MAT}.part").write_bytes((site / MAT).read_bytes()[:1000])
    if before == "splits":
        write_splits(root / "splits.mat", test=[9])
    data = NYUDepthV2(str(root), num_workers=0, val_images=2)
    data.prepare_data()
    assert names(root) == {MAT, "splits.mat"}
    tests = data.summary()["splits"]["test"]["images"]
    assert tests == (1 if before == "splits" else 4)


def test_a_missing_split_alone_is_fetched_also_beside_a_file_of_another_name(
    site: Path, tmp_path: Path
) -> None:
    path = write_labelled(tmp_path / "mine" / "nyu.mat")
    data = NYUDepthV2(str(path), num_workers=0, val_images=2)
    data.prepare_data()
    assert names(tmp_path / "mine") == {"nyu.mat", "splits.mat"}
    assert data.summary()["splits"]["test"]["images"] == 4


def test_what_is_there_is_left_alone(site: Path, tmp_path: Path) -> None:
    for name in (MAT, "splits.mat"):
        (site / name).unlink()  # so that any download would fail
    write_labelled(tmp_path / "a" / MAT)
    write_splits(tmp_path / "own.mat")
    NYUDepthV2(str(tmp_path / "a"), splits=str(tmp_path / "own.mat")).prepare_data()
    assert names(tmp_path / "a") == {MAT}
    write_frame_folders(tmp_path / "b")
    NYUDepthV2(str(tmp_path / "b")).prepare_data()
    assert names(tmp_path / "b") == {"train", "val"}


def test_a_folder_of_something_else_is_not_filled(site: Path, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    (root / "cat.jpg").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"photos holds 'cat\.jpg'\. Expected"):
        NYUDepthV2(str(root)).prepare_data()
    assert names(root) == {"cat.jpg"}


def test_a_named_file_that_is_not_there_is_not_downloaded(site: Path, tmp_path: Path) -> None:
    (tmp_path / "typo").mkdir()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*typo/nyu\.mat"):
        NYUDepthV2(str(tmp_path / "typo" / "nyu.mat")).prepare_data()
    assert names(tmp_path / "typo") == set()


def test_a_failure_says_what_to_put_where(site: Path, tmp_path: Path) -> None:
    (site / "splits.mat").unlink()
    data = NYUDepthV2(str(tmp_path / "nyu"))
    with pytest.raises(RuntimeError, match=r"Could not download .*/splits\.mat \(HTTP") as caught:
        data.prepare_data()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert f"put it at {tmp_path / 'nyu' / 'splits.mat'} (md5 " in message
    assert "data.splits" in message
    assert "data.archive" not in message

    (site / MAT).unlink()
    with pytest.raises(RuntimeError, match=r"data\.root to where it is"):
        NYUDepthV2(str(tmp_path / "other")).prepare_data()


@pytest.mark.shared_data
def test_the_official_split_has_the_md5_that_is_expected(shared_data: Path) -> None:
    assert file_md5(shared_data / "splits.mat") == depth_v2._SPLITS_MD5
