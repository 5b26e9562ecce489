"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

# Before any import of the libraries that read them.
os.environ["WANDB_MODE"] = "disabled"
os.environ["KORA_CACHE"] = tempfile.mkdtemp(prefix="kora-tests-")
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "all"  # of each the first would do otherwise
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import pytest
import torch

import kora.training.stages
from kora.runs.processes import run_child
from tests.support.cli import here
from tests.support.cluster import cluster, nodes
from tests.support.rendered import remembered

__all__ = ["cluster", "here", "nodes"]

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = "KORA_SHARED_DATA"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--first-cases", action="store_true", help="the first case of each test")


def pytest_xdist_auto_num_workers() -> int:
    # One more than cores: some tests wait for processes most of their time.
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--first-cases"):  # not every strategy on every family, say
        items[:] = {item.nodeid.partition("[")[0]: item for item in reversed(items)}.values()
        items.reverse()
    # A minute each, most of which they wait: at the end, the other workers would wait with them.
    items.sort(key=lambda item: "cluster" not in getattr(item, "fixturenames", ()))


def pytest_collection_finish() -> None:
    # Modules and tests stay: they are not looked through for garbage, and new objects seldom.
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 10, 10)
    # In a fork what is garbage by now stays: a process group, say, would wait for threads that only
    # the parent has.
    os.register_at_fork(after_in_child=gc.freeze)


@pytest.fixture(scope="session", autouse=True)
def _no_cache_is_left() -> Iterator[None]:
    yield
    shutil.rmtree(os.environ["KORA_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    # Small tensors gain nothing from more; on a busy machine waiting threads cost a hundredfold.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images and weights: $KORA_SHARED_DATA, else ../shared/data if it is there."""
    named = os.environ.get(SHARED_DATA)
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set {SHARED_DATA} to the folder with the real data")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _source_stages_are_forks() -> Iterator[None]:
    # Of the process that a grid keeps too, so that its imports are paid once a worker; also those
    # of a module's runs.
    with pytest.MonkeyPatch.context() as monkeypatch:
        kept = partial(run_child, more_follow=True)
        monkeypatch.setattr(kora.training.stages, "run_child", kept)
        yield


@pytest.fixture(scope="session", autouse=True)
def _a_parser_is_built_once() -> Iterator[None]:
    # As in the forks of a grid; a tenth of a second for each command that runs in this process.
    built = defaultdict[str, dict[str, object]](dict)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("kora.training.lightning_cli.of_the_parser", built.__getitem__)
        yield


@pytest.fixture(scope="session", autouse=True)
def _a_scene_is_rendered_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("datamodules.synthetic.render", remembered)
        yield


@pytest.fixture
def images() -> torch.Tensor:
    """Three uint8 images (3, 3, 48, 40) of seeded noise: not square, not the backbone's size."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 48, 40), dtype=torch.uint8, generator=generator)


@pytest.fixture(autouse=True)
def _no_process_group_is_left() -> Iterator[None]:
    yield
    # A copy of this process would wait in it for ever: its threads are not copied.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _no_seed_and_no_rank_of_another_test() -> None:
    # Lightning leaves both in the environment. Data modules read the seed; a process that finds a
    # rank waits for the others.
    for name in (
        "PL_GLOBAL_SEED",
        "LOCAL_RANK",
        "NODE_RANK",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "MASTER_PORT",
    ):
        os.environ.pop(name, None)
