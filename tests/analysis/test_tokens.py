"""Claims about what Bottleneck and VPT do to tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kora.adapters import Bottleneck
from kora.adapters.vpt import VPT
from kora.analysis.tokens import AdapterShares, PromptShares
from tests.support.factory import built, kick, nano


def test_what_an_adapter_adds_is_measured_beside_what_it_reads(images: Tensor) -> None:
    strategy = Bottleneck(3, "post", blocks=[0, 5])
    task = kick(built(strategy)).eval()
    seen: list[tuple[Tensor, Tensor]] = []
    handle = strategy.adapters["b05_post"].register_forward_hook(
        lambda _, x, y: seen.append((x[0], y))
    )
    shares = AdapterShares(strategy)
    with torch.no_grad(), shares.listening():
        task.features(images[:1])
        task.features(images[1:])
    handle.remove()
    task.features(images)  # nobody listens to this one
    read, added = (torch.cat(parts).norm(dim=-1).sum() for parts in zip(*seen, strict=True))
    (one,) = shares.quantities()
    assert one.values["5", "post"] == pytest.approx(float(added / read), rel=1e-5)
    assert list(one.values) == [("0", "post"), ("5", "post")]


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_are_measured_beside_the_tokens_of_the_image(deep: bool, images: Tensor) -> None:
    backbone, strategy = nano(), VPT(3, deep=deep)
    task = built(strategy, backbone=backbone).eval()
    seen: list[Tensor] = []
    backbone.model.blocks[0].register_forward_pre_hook(lambda _, x: seen.append(x[0]), prepend=True)
    shares = PromptShares(strategy, backbone)
    with torch.no_grad(), shares.listening():
        task.features(images)
    norms, relative = (one.values for one in shares.quantities())
    prompt = float(strategy.tokens["b00_prompts"].prompt_KD.norm(dim=-1).mean())
    token = float(seen[0].norm(dim=-1).mean())
    assert norms["0", "prompts"] == pytest.approx(prompt, rel=1e-5)
    assert relative["0", "prompts"] == pytest.approx(prompt / token, rel=1e-5)
    assert len(norms) == (6 if deep else 1)
