"""Claims about the adapter folder: it loads exactly, or says what is wrong."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from kora.adapters import (
    ClsReadout,
    FullFineTune,
    KoRA,
    LoRA,
    PaperForm,
    PlainMatrix,
    RefinedForm,
    Strategy,
    Sum,
)
from kora.adapters.folder import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    load_adapter,
    read_adapter_config,
    save_adapter,
)
from tests.support.adapter_factory import edit_record
from tests.support.factory import built, kick, nano
from tests.support.faults import Trap, flip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a LoRA of rank 2 that has been moved away from its start."""
    task = kick(built(LoRA(2)))
    return save_adapter(
        tmp_path / "adapter",
        task.kept_tensors(),
        adapter=task.adapter,
        backbone=task.backbone,
        extra={"data": {"name": "Numbers", "classes": 7}},
    )


def load(folder: Path | str, adapter: Strategy | None = None, **options: Any) -> dict[str, Any]:
    task = built(LoRA(2) if adapter is None else adapter, **options)
    before = {name: tensor.detach().clone() for name, tensor in task.kept_tensors().items()}
    try:
        return load_adapter(folder, task.adapter, task.backbone)
    except Exception:
        now = task.kept_tensors()
        assert all(torch.equal(now[name], before[name]) for name in before), "half loaded"
        raise


def test_the_record_names_strategy_backbone_hash_and_data(folder: Path) -> None:
    record = json.loads((folder / ADAPTER_CONFIG).read_text())
    assert record["adapter"]["class_path"] == "kora.adapters.LoRA"
    assert record["adapter"]["init_args"]["rank"] == 2
    assert record["backbone"] == {"name": "vit_nano", "image_size": 64, "sha256": nano().sha256}
    assert record["data"] == {"name": "Numbers", "classes": 7}
    assert load(folder) == {"folder": str(folder), **record}


def test_the_file_holds_adapter_and_head_and_none_of_the_backbone(folder: Path) -> None:
    names = load_file(folder / ADAPTER_WEIGHTS).keys()
    assert {name.split(".")[0] for name in names} == {"adapter", "head"}
    assert len(names) == 6 * 4 * 2 + 2


def test_nothing_but_the_two_files_is_left(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == [ADAPTER_CONFIG, ADAPTER_WEIGHTS]


def test_environment_variables_in_the_folder_are_expanded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNS", str(folder.parent))
    assert load("$RUNS/adapter")["folder"] == str(folder)


@pytest.mark.parametrize(
    "adapter", [LoRA(4), LoRA(2, 0.5), LoRA(2, sites=["qkv"]), KoRA(PaperForm(2)), FullFineTune()]
)
def test_another_strategy_or_argument_is_refused(adapter: Strategy, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Adapter .*(this run has kora| there, ).*equal to it"):
        load(folder, adapter)


def test_weights_of_another_backbone_are_refused(folder: Path) -> None:
    other = nano()
    with torch.no_grad():
        other.model.norm.bias += 1
    with pytest.raises(ValueError, match=r"trained on 'vit_nano' at 64 .*weights.*model\.backbone"):
        load(folder, backbone=other)


def test_another_image_size_is_named_with_what_it_was(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'vit_nano' at 64 pixels .* 'vit_nano' at 32 pixels"):
        load(folder, backbone=nano(image_size=32))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / ADAPTER_WEIGHTS)
    change(state)
    save_file(state, folder / ADAPTER_WEIGHTS)
    digest = hashlib.sha256((folder / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    edit_record(folder, weights_sha256=digest)


KEY = "adapter.deltas.b03_fc1.up_OR"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(KEY), rf"'{KEY}' is missing"),
        (lambda s: s.update(surplus=torch.zeros(2)), r"'surplus' is unknown here"),
        (
            lambda s: s.update({f"{KEY}s": s.pop(KEY)}),
            rf"'{KEY}' is missing; '{KEY}s' is unknown here",
        ),
        (
            lambda s: s.update({KEY: torch.zeros(2, 512)}),
            rf"'{KEY}' has shape \(2, 512\), expected",
        ),
        (lambda s: s.update({KEY: s[KEY].int()}), rf"'{KEY}' is of torch.int32, expected torch.f"),
        (lambda s: [s.pop(k) for k in list(s) if "fc2" in k], r"and 8 more"),
    ],
    ids=["missing", "extra", "renamed", "shape", "whole numbers", "many"],
)
def test_weights_that_differ_in_a_key_or_shape_are_refused(
    change: Callable[[dict[str, Tensor]], object], message: str, folder: Path
) -> None:
    change_weights(folder, change)
    with pytest.raises(ValueError, match=message) as told:
        load(folder)
    assert str(folder / ADAPTER_WEIGHTS) in str(told.value)


def test_a_head_of_other_classes_does_not_hinder(folder: Path) -> None:
    assert load(folder, num_classes=3)["folder"] == str(folder)


@pytest.mark.parametrize("keep", [0, 5, 300, -1])
def test_truncated_weights_are_named(keep: int, folder: Path) -> None:
    path = folder / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RuntimeError, match=rf"{ADAPTER_WEIGHTS} cannot be read.*Train it again"):
        load(folder)


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_a_flipped_byte_in_the_weights_is_told_with_both_checksums(
    place: float, folder: Path
) -> None:
    path = folder / ADAPTER_WEIGHTS
    expected = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    flip(path, place)
    found = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    with pytest.raises(RuntimeError, match=rf"{ADAPTER_WEIGHTS} .*{found}.*{expected}.*again"):
        load(folder)


def test_a_pickle_in_place_of_the_weights_never_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    trap = folder / "it_ran"
    content = pickle.dumps(Trap(trap))
    (folder / ADAPTER_WEIGHTS).write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"{ADAPTER_WEIGHTS} cannot be read.*SHA-256"):
        load(folder)
    edit_record(folder, weights_sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(RuntimeError, match=rf"{ADAPTER_WEIGHTS} cannot be read"):
        load(folder)
    assert not trap.exists()
    pickle.loads(content)  # the trap is one
    assert trap.exists()


def test_weights_without_a_checksum_of_an_older_version_are_loaded(folder: Path) -> None:
    edit_record(folder, weights_sha256=None)
    assert load(folder)["folder"] == str(folder)


def test_weights_that_are_a_folder_are_named(folder: Path) -> None:
    (folder / ADAPTER_WEIGHTS).unlink()
    (folder / ADAPTER_WEIGHTS).mkdir()
    with pytest.raises(RuntimeError, match=rf"{ADAPTER_WEIGHTS} cannot be read"):
        load(folder)


def test_weights_of_a_run_that_diverged_are_refused(folder: Path) -> None:
    change_weights(folder, lambda state: state[KEY][3].fill_(torch.nan))
    with pytest.raises(RuntimeError, match=rf"{ADAPTER_WEIGHTS} .*'{KEY}'.*not finite.*again"):
        load(folder)


def test_missing_weights_are_named(folder: Path) -> None:
    (folder / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(RuntimeError, match=rf"{ADAPTER_WEIGHTS} cannot be read"):
        load(folder)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"{}", b"null", b"\xff\xfe"),
        b'{"format": 1, "adapter": {}, "backbone": {"sha256": ""}}',
        *(
            b'{"format": 1, "adapter": {"class_path": "x", "init_args": %s}, '
            b'"backbone": {"name": "y", "sha256": %s}}' % pair
            for pair in ((b"[1]", b'"z"'), (b"null", b'"z"'), (b"{}", b"null"), (b"{}", b"3"))
        ),
    ],
)
def test_a_damaged_record_is_named(content: bytes, folder: Path) -> None:
    (folder / ADAPTER_CONFIG).write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"{ADAPTER_CONFIG} is damaged.*again"):
        load(folder)


def test_a_record_of_another_format_is_refused(folder: Path) -> None:
    (folder / ADAPTER_CONFIG).write_text('{"format": 2, "kora_version": "9.0"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"is of format 2, written by kora 9.0; this version"):
        load(folder)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match=r"is no adapter folder.*version_<n>/adapter"):
            read_adapter_config(path)


def _refined(init: str = "default") -> KoRA:
    form = RefinedForm(PlainMatrix(init))
    return KoRA(form, 3, composer=Sum(), readout=ClsReadout("default"))


@pytest.mark.parametrize(
    ("place", "older"),
    [([], "feedback"), (["node_form"], "norm"), (["node_form", "matrix"], "init")],
)
def test_a_folder_from_before_an_argument_was_there_has_its_default(
    place: list[str], older: str, tmp_path: Path
) -> None:
    task = kick(built(_refined()))
    save_adapter(tmp_path, task.kept_tensors(), adapter=task.adapter, backbone=task.backbone)

    record = read_adapter_config(tmp_path)["adapter"]
    arguments = record["init_args"]
    for part in place:
        arguments = arguments[part]["init_args"]
    del arguments[older]
    edit_record(tmp_path, adapter=record)
    loaded = built(_refined())
    load_adapter(tmp_path, loaded.adapter, loaded.backbone)
    for name, tensor in loaded.adapter.trainable():
        assert torch.equal(tensor, task.trainables()[f"adapter.{name}"])
    if older == "init":
        with pytest.raises(ValueError, match=r"'init': 'default'.* there, .*'init': 'zero'"):
            load_adapter(tmp_path, (other := built(_refined("zero"))).adapter, other.backbone)
