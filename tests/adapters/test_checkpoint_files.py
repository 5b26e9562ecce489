"""Claims about reading checkpoints: damage is named, and pickled objects never run."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import socket
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from kora.adapters.checkpoint_files import choose_checkpoint, read_checkpoint, require_record
from kora.runs.durable import DamagedFileError
from kora.training.checkpoints import CheckedCheckpointIO
from tests.support.faults import Trap, flip, truncate
from tests.support.saved_files import RECORD, save


def test_what_was_saved_is_read_back_onto_the_cpu(tmp_path: Path) -> None:
    content = read_checkpoint(save(tmp_path / "last.ckpt", step=7))
    assert content["global_step"] == 7
    assert torch.equal(content["state_dict"]["head.weight"], torch.arange(4000.0))


@pytest.mark.parametrize("checksum", [True, False], ids=["checksum beside it", "copied alone"])
@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_flipped_byte_is_found(checksum: bool, place: float, tmp_path: Path) -> None:
    path = save(tmp_path / "last.ckpt")
    if not checksum:
        path.with_name("last.ckpt.sha256").unlink()
    flip(path, place)
    torch.load(path, weights_only=True)  # torch itself sees nothing
    with pytest.raises(DamagedFileError, match=r"last\.ckpt is damaged: .*(SHA-256|record)"):
        read_checkpoint(path)


@pytest.mark.slow
def test_wherever_a_byte_flips_in_a_file_that_was_copied_alone_no_other_numbers_are_read(
    tmp_path: Path,
) -> None:
    tensors = {"a": torch.arange(200.0), "b": torch.ones(3)}
    path = tmp_path / "copy.ckpt"
    torch.save({"kora": RECORD, "state_dict": tensors, "global_step": 3}, path)
    content, told = path.read_bytes(), 0
    with zipfile.ZipFile(path) as archive:
        directory = archive.start_dir
    flips = [(place, place % 8) for place in range(0, directory, 5)]
    flips += [(place, bit) for place in range(directory, len(content)) for bit in (place % 8, 4)]
    for place, bit in flips:
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        path.write_bytes(changed)
        try:
            read = read_checkpoint(path)
        except DamagedFileError:
            told += 1
        else:  # in the padding between the tensors, or a date
            assert read["kora"] == RECORD
            assert read["global_step"] == 3
            for name, tensor in tensors.items():
                assert torch.equal(read["state_dict"][name], tensor), (place, bit)
    assert told > len(flips) / 2


@pytest.mark.parametrize("checksum", [True, False], ids=["checksum beside it", "copied alone"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_named(checksum: bool, share: float, tmp_path: Path) -> None:
    path = save(tmp_path / "last.ckpt")
    if not checksum:
        path.with_name("last.ckpt.sha256").unlink()
    truncate(path, share)
    with pytest.raises(DamagedFileError, match=r"last\.ckpt is damaged"):
        read_checkpoint(path)


def test_something_else_is_named(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(DamagedFileError, match=r"list\.ckpt is no checkpoint: it holds list"):
        read_checkpoint(tmp_path / "list.ckpt")
    with pytest.raises(FileNotFoundError, match=r"nothing\.ckpt does not exist"):
        read_checkpoint(tmp_path / "nothing.ckpt")


@pytest.mark.filterwarnings("ignore:Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
@pytest.mark.parametrize("format", ["zip", "legacy", "bare"])
def test_a_pickled_payload_never_runs_whatever_the_environment_says(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trap, path = tmp_path / "it_ran", tmp_path / "last.ckpt"
    payload = {"kora": RECORD, "state_dict": {}, "loops": Trap(trap)}
    if format == "bare":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=format == "zip")
    refused = r"last\.ckpt (is refused: it holds pickled|is damaged, or was not written by kora)"
    with pytest.raises(RuntimeError, match=refused):
        read_checkpoint(path)
    with pytest.raises(RuntimeError, match=refused):
        CheckedCheckpointIO().load_checkpoint(path, weights_only=False)
    with pytest.raises(RuntimeError, match=refused):
        choose_checkpoint(path, resume=True)
    assert not trap.exists()
    with contextlib.suppress(RuntimeError):  # the bare one is no checkpoint, but only after it ran
        torch.load(path)  # stock torch runs it
    assert trap.exists()


def test_a_payload_is_refused_also_where_a_good_checkpoint_lies_beside_it(tmp_path: Path) -> None:
    save(tmp_path / "best.ckpt")
    torch.save({"kora": RECORD, "x": Trap(tmp_path / "it_ran")}, tmp_path / "last.ckpt")
    with pytest.raises(RuntimeError, match=r"last\.ckpt is refused"):
        choose_checkpoint(tmp_path / "last.ckpt", resume=True)
    assert not (tmp_path / "it_ran").exists()


def test_instead_of_a_damaged_one_training_goes_on_from_the_newest_good_one(
    tmp_path: Path,
) -> None:
    last = save(tmp_path / "last.ckpt", step=9)
    save(tmp_path / "newer.ckpt", step=8)
    save(tmp_path / "best.ckpt", step=5)
    save(tmp_path / "older.ckpt", step=2)  # the file itself is newer than that of best.ckpt
    assert choose_checkpoint(last, resume=True) == (last, None)
    truncate(last)
    flip(tmp_path / "newer.ckpt")
    chosen, why = choose_checkpoint(last, resume=True)
    assert chosen == tmp_path / "best.ckpt"
    assert why is not None
    assert "last.ckpt is damaged" in why
    assert str(chosen) in why
    assert "\n" not in why


def test_what_is_measured_is_never_another_one(tmp_path: Path) -> None:
    best = save(tmp_path / "best.ckpt")
    save(tmp_path / "last.ckpt")
    flip(best)
    with pytest.raises(DamagedFileError, match=r"best\.ckpt is damaged.*folder: last\.ckpt\."):
        choose_checkpoint(best, resume=False)
    (tmp_path / "last.ckpt").unlink()
    for resume in (True, False):
        with pytest.raises(DamagedFileError, match=r"best\.ckpt is damaged.*has no good one"):
            choose_checkpoint(best, resume=resume)


def test_what_a_killed_save_left_is_swept(tmp_path: Path) -> None:
    path = save(tmp_path / "checkpoints/last.ckpt")
    stray = f".kora-{socket.gethostname()}-{2**22 + 1}-00000000.tmp"
    for folder in (path.parent, tmp_path):
        (folder / stray).write_bytes(b"half")
    choose_checkpoint(path, resume=True)
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kora": None}, r"^It was not written by kora.*--ckpt_path"),
        ({"kora": {"backbone": "x", "sha256": 3}}, r"^It lacks kora\.sha256, kora\.adapter, which"),
        ({"state_dict": None}, r"^It lacks state_dict"),
        ({"state_dict": {"head.bias": [1]}}, r"^It: state_dict\['head.bias'\] is no tensor"),
    ],
)
def test_what_is_missing_is_listed(change: dict[str, Any], message: str) -> None:
    whole = {"kora": RECORD, "state_dict": {}}
    assert require_record(whole, "It") == RECORD
    with pytest.raises(ValueError, match=message):
        require_record({**whole, **change}, "It")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"optimizer_states": None}, "optimizer_states"),
        ({"lr_schedulers": {}}, "lr_schedulers"),
        ({"resume": [1]}, "resume.epoch, resume.batches"),
        ({"callbacks": {"RunRecord": {"fit_seconds": "x"}}}, "callbacks.RunRecord.fit_seconds"),
    ],
)
def test_what_training_cannot_go_on_from_is_named_and_can_still_be_measured(
    change: dict[str, Any], key: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "last.ckpt", **change)
    assert choose_checkpoint(path, resume=False) == (path, None)
    with pytest.raises(ValueError, match=rf"last\.ckpt lacks {key}"):
        choose_checkpoint(path, resume=True)
    save(path, **{"pytorch-lightning_version": None})
    with pytest.raises(ValueError, match=r"last\.ckpt lacks pytorch-lightning_version"):
        choose_checkpoint(path, resume=False)


def test_a_copy_of_the_pair_elsewhere_is_still_checked(tmp_path: Path) -> None:
    path = save(tmp_path / "a/last.ckpt")
    moved = Path(shutil.copytree(path.parent, tmp_path / "b")) / "last.ckpt"
    assert read_checkpoint(moved)["global_step"] == 1
    flip(moved)
    with pytest.raises(DamagedFileError, match=r"b/last\.ckpt"):
        read_checkpoint(moved)


def test_what_a_killed_run_left_beside_its_pictures_is_swept_by_the_next(tmp_path: Path) -> None:
    last = save(tmp_path / "run" / "checkpoints" / "last.ckpt")
    gone = f".kora-{socket.gethostname()}-{2**22 + 1}-0123abcd.tmp"
    strays = [tmp_path / "run" / folder / gone for folder in (".", "val_depth", "checkpoints")]
    for stray in strays:
        stray.parent.mkdir(exist_ok=True)
        stray.touch()
    choose_checkpoint(last, resume=True)
    assert not any(stray.exists() for stray in strays)
