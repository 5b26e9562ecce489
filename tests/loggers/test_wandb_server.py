"""The look at the W&B server takes five seconds at most, whatever the server does."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from kora.loggers.wandb_server import server_answers, wandb_base_url
from tests.support.wandb_servers import FAULTS, always, serving, unfinished_tls

NOBODY = ("http://127.0.0.1:9", "http://nowhere.invalid", "http://10.255.1.1", "http://[")
HANDSHAKE = "half a TLS handshake"
DEEP = "brackets without end"


def _timed_look(url: str) -> tuple[bool, float]:
    started = time.monotonic()
    return server_answers(url), time.monotonic() - started


@pytest.fixture(scope="module")
def looks() -> Iterator[dict[str, tuple[bool, float]]]:
    """What each look found, and its seconds. All are taken at once, as most of them wait."""
    died: list[threading.ExceptHookArgs] = []
    before, threading.excepthook = threading.excepthook, died.append
    with ExitStack() as servers, ThreadPoolExecutor(16) as pool:
        urls = {url: url for url in NOBODY}
        urls[HANDSHAKE] = servers.enter_context(unfinished_tls())
        faults = {**FAULTS, DEEP: lambda it: it.answer(200, b"[" * 60_000)}
        for name, fault in faults.items():
            server = servers.enter_context(serving(fault))
            server.fails = always
            urls[name] = server.url
        yield dict(zip(urls, pool.map(_timed_look, urls.values()), strict=True))
    threading.excepthook = before
    assert not died  # a thread that dies prints a traceback


def test_a_server_that_answers_is_known_within_a_moment() -> None:
    with serving() as server:
        assert server_answers(server.url)
        assert server_answers(server.url + "/")


def test_a_server_that_wants_a_login_answers() -> None:
    with serving(lambda it: it.answer(401)) as server:
        server.fails = always
        assert server_answers(server.url)


@pytest.mark.parametrize("name", [*NOBODY, HANDSHAKE, DEEP, *FAULTS])
def test_whatever_answers_otherwise_is_no_server_within_five_seconds(
    looks: dict[str, tuple[bool, float]], name: str
) -> None:
    answers, seconds = looks[name]
    assert not answers
    assert seconds < 6.5  # a busy machine wakes up late


@pytest.mark.parametrize("folder", ["wandb", ".wandb"])
def test_settings_in_the_working_directory_do_not_decide_where_the_key_goes(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    usual = wandb_base_url()
    file = tmp_path / folder / "settings"
    file.parent.mkdir()
    file.write_text(f"[default]\nentity = me\nmode = offline\nbase_url = {usual}/\n")
    assert wandb_base_url() == usual  # as `wandb init` and `wandb offline` write it
    file.write_text(
        "[default]\nbase_url = http://evil.example\nhttps_proxy = http://evil.example\n"
    )
    with pytest.raises(ValueError, match=rf"{folder}/settings sets base_url, https_proxy"):
        wandb_base_url()
    for sections in ("[default]\n{}[other]\n{}", "[DEFAULT]\n{}[default]\n{}"):
        file.write_text(sections.format("base_url=http://evil.example\n", f"base_url={usual}\n"))
        with pytest.raises(ValueError, match=rf"{folder}/settings sets base_url"):
            wandb_base_url()
    file.write_text("base_url = http://evil.example")
    with pytest.raises(ValueError, match="no settings of W&B"):
        wandb_base_url()
