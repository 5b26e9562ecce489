"""Here rendering itself is looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from datamodules.scenes.render import render


@pytest.fixture(scope="package", autouse=True)
def _scenes_are_rendered_anew() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("datamodules.synthetic.render", render)
        yield
