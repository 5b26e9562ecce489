"""The W&B server: where it is, whether it answers, and whether there is a login.

Nothing here loads torch or Lightning, so `kora compare --wandb` starts at once.
"""

from __future__ import annotations

import configparser
import json
import netrc
import os
from pathlib import Path
from threading import Thread
from urllib.parse import urlsplit

import requests

__all__ = ["has_credentials", "require_server", "server_answers", "wandb_base_url"]

#: Limits of the check: seconds in all, and bytes of an answer that are read.
_LOOK_S, _LONGEST = 5.0, 1 << 16


#: What a file of W&B's settings in the working directory may say. Others send the key elsewhere.
_HARMLESS = {"entity", "project", "organization", "mode", "disabled"}


def wandb_base_url() -> str:
    """The server that W&B talks to.

    Raises:
        ValueError: A file in the working directory, which may be anybody's, would change it.
    """
    import wandb

    usual = os.environ.get("WANDB_BASE_URL") or str(wandb.Settings().base_url)
    for file in map(Path, ("wandb/settings", ".wandb/settings")):
        if file.is_file():
            _require_harmless(file, usual)
    return usual


def _require_harmless(file: Path, usual: str) -> None:
    found = configparser.ConfigParser(interpolation=None)
    try:
        found.read_string(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise ValueError(f"{file}: no settings of W&B ({error}). Remove the file.") from error
    said = [pair for section in found.values() for pair in section.items()]
    harmless = "base_url", usual.rstrip("/")  # as `wandb init` writes it
    keys = {key for key, value in said if (key, value.rstrip("/")) != harmless} - _HARMLESS
    if keys:
        raise ValueError(
            f"{file} sets {', '.join(sorted(keys))}, so W&B might send your key to somebody else. "
            "Remove the file, or these lines; for a server of your own set WANDB_BASE_URL."
        )


def has_credentials() -> bool:
    """Whether there is a login at the W&B server: a key, or an entry in netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    hosts = {urlsplit(wandb_base_url()).netloc}
    if not os.environ.get("WANDB_BASE_URL"):
        hosts.add("api.wandb.ai")  # older versions of wandb log in there
    named = os.environ.get("NETRC")
    path = os.path.expanduser(named or "~/.netrc")  # itself if there is no home
    try:
        found = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        return False
    return any(found.authenticators(host) is not None for host in hosts)


def require_server(what: str, *, login: str = "", later: str = "") -> str:
    """The server that W&B talks to, if there is a login and it answers.

    Args:
        what: What the errors are about.
        login: Completes the error if there is no login.
        later: Completes the error if it does not answer, behind "Try again later".

    Raises:
        ValueError: There is no login.
        RuntimeError: The server does not answer.
    """
    base_url = wandb_base_url()
    if not has_credentials():
        raise ValueError(
            f"{what}: there is no login at {base_url}. Run `wandb login` once, or set "
            f"WANDB_API_KEY.{login}"
        )
    if not server_answers(base_url):
        raise RuntimeError(f"{what}: W&B at {base_url} does not answer. Try again later{later}.")
    return base_url


def server_answers(base_url: str) -> bool:
    """Whether a W&B server answers a run's first question; "log in first" is an answer too.

    A connection alone says little: a server in trouble, or a proxy, accepts it and sends nothing,
    or a byte now and then. So the whole check has five seconds, in a thread that is abandoned then.
    """
    found: list[bool] = []
    look = Thread(target=lambda: found.append(_answers(base_url)), daemon=True)
    look.start()
    look.join(_LOOK_S)
    return found == [True]


def _answers(base_url: str) -> bool:
    try:
        with requests.post(
            f"{base_url.rstrip('/')}/graphql",
            json={"query": "query Viewer { viewer { id } }"},
            timeout=_LOOK_S,
            allow_redirects=False,
            stream=True,
        ) as answer:
            if answer.status_code == 401:
                return True
            said = json.loads(next(answer.iter_content(_LONGEST), b""))
    except Exception:  # such as a proxy's HTML page: not an answer of W&B
        return False
    return answer.status_code == 200 and isinstance(said, dict) and bool(said.get("data"))
