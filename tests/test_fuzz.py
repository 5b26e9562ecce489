"""Whatever stands in a file, its reader gives the right content or one line that names the file.

Hypothesis draws the damage: flips, cuts and insertions of bytes, and other values in what is JSON
or YAML. The draws are the same in every run. None is a subnormal number, as a fit switches these
off in its process.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import kora
from datamodules.archives import extract_archive
from datamodules.recipe import ImageRecipe
from kora.adapters import LoRA
from kora.adapters.checkpoint_files import read_checkpoint
from kora.adapters.folder import read_adapter_tensors
from kora.backbone.weights import load_file_exactly
from kora.cli.dispatch import _told
from kora.loggers.wandb_run import keep_run_id, wandb_run_id
from kora.runs.adapter_config import read_adapter_config
from kora.runs.outcomes import read_outcomes, write_outcomes
from tests.support.adapter_factory import kicked, write_folder
from tests.support.cli import kora as run_command
from tests.support.data_factory import write_tar, write_zip
from tests.support.factory import nano
from tests.support.saved_files import outcomes, save

_BOUNDED = settings(
    max_examples=20,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """One flip, cut, insertion or overwriting, at a place that is a share of the length."""
    share = draw(st.floats(0, 1, exclude_max=True, allow_subnormal=False))
    kind = draw(st.sampled_from(["flip", "cut", "insert", "overwrite", "empty"]))
    bits, more = draw(st.integers(1, 255)), draw(st.binary(min_size=1, max_size=64))

    def damage(content: bytes) -> bytes:
        place = int(share * len(content))
        head, tail = content[:place], content[place:]
        return {
            "flip": head + bytes([tail[0] ^ bits]) + tail[1:] if tail else head,
            "cut": head,
            "insert": head + more + tail,
            "overwrite": head + more + tail[len(more) :],
            "empty": b"",
        }[kind]

    return damage


@dataclass(frozen=True)
class Reader:
    """A file of a kind, and what a read of it gives, in a form that can be compared."""

    write: Callable[[Path], Path]  # into a folder; the path of the file
    read: Callable[[Path], Any]
    checked: bool = True  # it would notice every change


def _adapter(folder: Path) -> Path:
    return write_folder(folder / "adapter", kicked(LoRA(2)))


def _image(folder: Path, name: str, **options: Any) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def _weights(folder: Path) -> Path:
    from safetensors.torch import save_file

    save_file(nano().model.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _loaded_weights(path: Path) -> Any:
    model = nano().model
    load_file_exactly(model, "vit_nano", path)
    return {name: tensor.tolist() for name, tensor in model.state_dict().items()}


def _extracted(path: Path) -> Any:
    target = path.parent / "extracted"
    try:
        extract_archive(path, target)
        return {p.relative_to(target): p.read_bytes() for p in target.rglob("*") if p.is_file()}
    finally:
        import shutil

        shutil.rmtree(target, ignore_errors=True)
        left = [p.name for p in path.parent.iterdir() if p != path]
        assert not left, "nothing of an extraction stays behind"


_MEMBERS = {"top/a.txt": b"a" * 300, "top/b/c.bin": bytes(range(256))}

READERS: dict[str, Reader] = {
    "adapter_config.json": Reader(
        lambda folder: _adapter(folder) / "adapter_config.json",
        lambda path: read_adapter_config(path.parent),
    ),
    "adapter_model.safetensors": Reader(
        lambda folder: _adapter(folder) / "adapter_model.safetensors",
        lambda path: {k: v.tolist() for k, v in read_adapter_tensors(path.parent).items()},
    ),
    "last.ckpt": Reader(
        lambda folder: save(folder / "last.ckpt"),
        lambda path: read_checkpoint(path)["state_dict"]["head.weight"].tolist(),
    ),
    "outcomes": Reader(
        lambda folder: write_outcomes(folder, outcomes(size=50)),
        lambda path: {k: v.tolist() for k, v in read_outcomes(path.parent).columns.items()},
    ),
    "wandb_run.json": Reader(
        lambda folder: (keep_run_id(folder, "abc123"), folder / "wandb_run.json")[1],
        lambda path: wandb_run_id(path.parent) or "abc123",
        checked=False,
    ),
    "weights.safetensors": Reader(_weights, lambda path: bool(_loaded_weights(path))),
    "a.zip": Reader(lambda folder: write_zip(folder / "a.zip", _MEMBERS), _extracted),
    "a.tar.gz": Reader(lambda folder: write_tar(folder / "a.tar.gz", _MEMBERS), _extracted, False),
    "a.png": Reader(lambda folder: _image(folder, "a.png"), lambda p: ImageRecipe()(p).shape),
    "a.jpg": Reader(
        lambda folder: _image(folder, "a.jpg"), lambda path: ImageRecipe()(path).ndim, False
    ),
    "a.gif": Reader(
        lambda folder: _image(folder, "a.gif"), lambda path: ImageRecipe()(path).ndim, False
    ),
    "a.webp": Reader(
        lambda folder: _image(folder, "a.webp"), lambda path: ImageRecipe()(path).ndim, False
    ),
}


def _is_told(error: Exception, path: Path) -> None:
    """It is ours, one line, and names the file or its folder."""
    told = _told(error)
    assert told is not None, f"a traceback: {error!r}"
    assert path.name in str(told) or path.parent.name in str(told), str(told)
    assert "\n" not in str(told).strip()
    assert len(str(told)) < 800, "a line, not the file"


@pytest.mark.parametrize("name", READERS)
@_BOUNDED
@given(damage=damages())
def test_damaged_bytes_give_the_right_content_or_one_line_that_names_the_file(
    name: str, damage: Damage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    reader, path, content, right = _written(name, tmp_path_factory)
    path.write_bytes(damage(content))
    try:
        found = reader.read(path)
    except Exception as error:
        _is_told(error, path)
    else:
        if reader.checked:
            assert found == right
    finally:
        path.write_bytes(content)


_KNOWN: dict[str, tuple[Reader, Path, bytes, Any]] = {}


def _written(name: str, factory: pytest.TempPathFactory) -> tuple[Reader, Path, bytes, Any]:
    if name not in _KNOWN:
        reader = READERS[name]
        path = reader.write(factory.mktemp(name.replace(".", "_")))
        _KNOWN[name] = (reader, path, path.read_bytes(), reader.read(path))
    return _KNOWN[name]


# -- other values --------------------------------------------------------------------------------

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 10**20)
    | st.floats(allow_subnormal=False)
    | st.text(max_size=8)
    | st.sampled_from(["os.system", "kora.adapters.LoRA", "=1+1", "<script>", "../../x", "a\nb"])
)
_VALUES = st.recursive(
    _LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["class_path", "init_args", "a"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@st.composite
def changes(draw: st.DrawFn) -> Callable[[Any], Any]:
    """Another value at some place of nested tables and lists, or a key less."""
    steps = draw(st.lists(st.integers(0, 40), min_size=1, max_size=6))
    value, drop = draw(_VALUES), draw(st.booleans())

    def change(content: Any) -> Any:
        content = json.loads(json.dumps(content))
        here, parents = content, []
        for step in steps:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys:
                break
            key = keys[step % len(keys)]
            parents.append((here, key))
            if not isinstance(here[key], dict | list):
                break
            here = here[key]
        parent, key = parents[-1]
        if drop and isinstance(parent, dict):
            del parent[key]
        else:
            parent[key] = value
        return content

    return change


@_BOUNDED
@given(change=changes())
def test_an_adapter_record_with_other_values_builds_the_model_or_is_told(
    change: Callable[[Any], Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, path, content, _ = _written("adapter_config.json", tmp_path_factory)
    record = change({k: v for k, v in json.loads(content).items() if k != "record_sha256"})
    path.write_text(json.dumps(record), encoding="utf-8")
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    try:
        model = kora.load_adapter(path.parent)
        assert torch.isfinite(model(images)).all()
        model.predict(np.zeros((32, 32, 3), np.uint8))
    except Exception as error:
        _is_told(error, path)
    finally:
        path.write_bytes(content)


_CONFIG = {
    "experiment": "tiny",
    "seed_everything": 0,
    "source": None,
    "model": {
        "class_path": "kora.tasks.ClassificationTask",
        "init_args": {
            "backbone": {"name": "vit_nano", "weights": "random", "image_size": 32},
            "adapter": {"class_path": "kora.adapters.LoRA", "init_args": {"rank": 2}},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}},
        },
    },
    "data": {
        "class_path": "datamodules.Synthetic",
        "init_args": {"image_size": 32, "train_images": 48, "test_images": 24, "val_images": 12},
    },
    "trainer": {"max_epochs": 1, "callbacks": None, "logger": None},
    "wandb": {"mode": "disabled"},
}


@_BOUNDED
@given(change=changes())
def test_a_config_of_a_run_with_other_values_is_parsed_or_told(
    change: Callable[[Any], Any],
    tmp_path_factory: pytest.TempPathFactory,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "metrics.csv").touch()  # as in a run
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(change(_CONFIG)), encoding="utf-8")
    capfd.readouterr()
    outcome = run_command(capfd, "params", "--config", path)
    assert "Traceback" not in outcome.err
    lines = [line for line in outcome.err.splitlines() if line.startswith("kora: error: ")]
    assert len(lines) == (outcome.code != 0), outcome.err
