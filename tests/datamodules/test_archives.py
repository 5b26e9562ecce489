"""Claims about extraction: checked, and all or nothing."""

from __future__ import annotations

import copy
import io
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.archives import extract_archive
from tests.support.data_factory import write_tar, write_zip
from tests.support.faults import damages

MEMBERS = {"data/a.txt": b"a" * 5000, "data/deep/b.txt": bytes(range(256)) * 40}
WRITERS = {"zip": write_zip, "tar": write_tar, "tar.gz": write_tar, "tgz": write_tar}


def write(path: Path, members: dict[str, bytes]) -> Path:
    return (write_zip if path.suffix == ".zip" else write_tar)(path, members)


def nothing_is_left(folder: Path, archive: Path) -> bool:
    return [path for path in folder.rglob("*") if path != archive] == []


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_folder_inside_becomes_the_target(tmp_path: Path, suffix: str) -> None:
    archive = write(tmp_path / f"x.{suffix}", {**MEMBERS, "other/c.txt": b"c"})
    extract_archive(archive, tmp_path / "out", inside="data")
    assert (tmp_path / "out" / "deep" / "b.txt").read_bytes() == MEMBERS["data/deep/b.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", archive.name]


def test_without_a_name_the_single_top_folder_or_everything(tmp_path: Path) -> None:
    extract_archive(write_zip(tmp_path / "one.zip", MEMBERS), tmp_path / "one")
    assert (tmp_path / "one" / "a.txt").exists()
    extract_archive(write_zip(tmp_path / "two.zip", {**MEMBERS, "x/y": b""}), tmp_path / "two")
    assert (tmp_path / "two" / "data" / "a.txt").exists()


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
@pytest.mark.parametrize("name", ["data/../../evil", "/tmp/evil", "..\\evil", "C:\\evil", "C:evil"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, suffix: str, name: str) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    archive = write(folder / f"x.{suffix}", {**MEMBERS, name: b"evil"})
    with pytest.raises(RuntimeError, match=rf"x\.{suffix} is not safe.*evil.*outside"):
        extract_archive(archive, folder / "out")
    assert nothing_is_left(tmp_path / "inner", archive)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_link_or_device_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    archive = tmp_path / "x.tar"
    with tarfile.open(archive, "w") as file:
        info = tarfile.TarInfo("data/link")
        info.type, info.linkname = kind, "/etc/passwd"
        file.addfile(info, io.BytesIO())
    with pytest.raises(RuntimeError, match="'data/link' is a link or a special file"):
        extract_archive(archive, tmp_path / "out")
    assert nothing_is_left(tmp_path, archive)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_a_link_or_device_in_a_zip_is_refused(tmp_path: Path, kind: int) -> None:
    archive = tmp_path / "x.zip"
    with zipfile.ZipFile(archive, "w") as file:
        info = zipfile.ZipInfo("data/link")
        info.external_attr = (kind | 0o777) << 16
        file.writestr(info, "/etc/passwd")
    with pytest.raises(RuntimeError, match="'data/link' is a link or a special file"):
        extract_archive(archive, tmp_path / "out")
    assert nothing_is_left(tmp_path, archive)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7])
def test_a_truncated_archive_is_named_and_leaves_nothing(
    tmp_path: Path, suffix: str, kept: float
) -> None:
    archive = write(tmp_path / f"x.{suffix}", MEMBERS)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(RuntimeError, match=rf"x\.{suffix} is damaged or truncated.*Delete it"):
        extract_archive(archive, tmp_path / "out")
    assert nothing_is_left(tmp_path, archive)


def test_a_flipped_byte_in_a_zip_is_noticed(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", MEMBERS)
    content = bytearray(archive.read_bytes())
    content[100] ^= 1
    archive.write_bytes(content)
    with pytest.raises(RuntimeError, match="damaged or truncated"):
        extract_archive(archive, tmp_path / "out")
    assert nothing_is_left(tmp_path, archive)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_whatever_happens_to_an_archive_its_content_is_right_or_it_is_named(
    tmp_path: Path, suffix: str
) -> None:
    archive, out = write(tmp_path / f"x.{suffix}", MEMBERS), tmp_path / "out"
    refused = 0
    for damage in damages(archive):
        try:
            extract_archive(archive, out, inside="data")
        except (RuntimeError, ValueError) as error:
            refused += str(archive) in str(error)
            assert not out.exists()
        else:
            for name, content in MEMBERS.items():
                assert (tmp_path / name.replace("data", "out", 1)).read_bytes() == content, damage
            shutil.rmtree(out)
    assert refused > 35  # not all bytes matter, as those of times


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
@pytest.mark.parametrize("names", [("data/a", "data/a/b"), ("data/a/b", "data/a")])
def test_a_member_that_is_file_and_folder_is_told(
    tmp_path: Path, suffix: str, names: tuple[str, str]
) -> None:
    archive = write(tmp_path / f"x.{suffix}", dict.fromkeys(names, b"x"))
    with pytest.raises(RuntimeError, match=rf"{archive} .*'\w' as a file and as a folder"):
        extract_archive(archive, tmp_path / "out")
    assert nothing_is_left(tmp_path, archive)


def test_a_tar_whose_header_holds_no_time_is_told(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as file:
        member = tarfile.TarInfo("a.txt")
        member.pax_headers = {"mtime": "nan"}
        file.addfile(member)
    with pytest.raises(RuntimeError, match=r"x\.tar is damaged"):
        extract_archive(tmp_path / "x.tar", tmp_path / "out")


@pytest.mark.parametrize("name", ["/".join("a" * 300), ""])
def test_a_member_too_deep_or_without_a_name_is_refused(tmp_path: Path, name: str) -> None:
    archive = write(tmp_path / "x.tar.gz", {**MEMBERS, name: b"x"})
    with pytest.raises(RuntimeError, match=r"x\.tar\.gz"):
        extract_archive(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encrypted_zip_is_told(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", MEMBERS)
    content = archive.read_bytes()
    for sign, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.index(sign) + place
        content = content[:at] + bytes([content[at] | 1]) + content[at + 1 :]
    archive.write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"{archive} is encrypted.*data/a\.txt.*data\.root"):
        extract_archive(archive, tmp_path / "out")
    assert nothing_is_left(tmp_path, archive)


def test_the_archive_of_another_data_set_is_a_user_error(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "x.zip", MEMBERS)
    with pytest.raises(ValueError, match="no folder 'tiny'; it holds 'data'"):
        extract_archive(archive, tmp_path / "out", inside="tiny")
    assert nothing_is_left(tmp_path, archive)
    (tmp_path / "x.rar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\.rar does not look like an archive"):
        extract_archive(tmp_path / "x.rar", tmp_path / "out")


def test_the_rest_of_a_killed_extraction_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".out.extracting" / "data").mkdir(parents=True)
    (tmp_path / ".out.extracting" / "data" / "stale").write_bytes(b"")
    extract_archive(write_zip(tmp_path / "x.zip", MEMBERS), tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.txt", "deep"]


def zip_bomb(path: Path) -> Path:
    """Thirty names for the same 64 MiB of zeros, which are 65 KB in the file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("data/0", bytes(64 << 20))
        for number in range(1, 30):
            twin = copy.copy(file.filelist[0])
            twin.filename = f"data/{number}"
            file.filelist.append(twin)
    return path


def tar_bomb(path: Path) -> Path:
    """A kilobyte that says that two terabytes will follow, behind a file as it should be."""
    info = tarfile.TarInfo("data/zeros")
    info.size = 2 << 40
    with tarfile.open(path, "w:gz") as file:
        small = tarfile.TarInfo("data/a.txt")
        small.size = 1
        file.addfile(small, io.BytesIO(b"a"))
        file.fileobj.write(info.tobuf())
    return path


@pytest.mark.parametrize(("name", "make"), [("x.zip", zip_bomb), ("x.tar.gz", tar_bomb)])
def test_a_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, name: str, make: Callable[[Path], Path]
) -> None:
    archive = make(tmp_path / name)
    assert archive.stat().st_size < 1 << 20
    with pytest.raises(RuntimeError, match=rf"{name} .*would unpack to more than .* bomb"):
        extract_archive(archive, tmp_path / "out")
    assert nothing_is_left(tmp_path, archive)


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_what_shrinks_well_and_is_small_is_no_bomb(tmp_path: Path, suffix: str) -> None:
    archive = write(tmp_path / f"x.{suffix}", {"data/zeros": bytes(20 << 20)})
    extract_archive(archive, tmp_path / "out")
    assert (tmp_path / "out" / "zeros").stat().st_size == 20 << 20
