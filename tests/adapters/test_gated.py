"""Claims about the form of the README of the paper's repository."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kora.adapters import GatedKoRA, LoRA
from kora.adapters.gated import GatedBlock
from tests.support.factory import built, kick
from tests.support.families import tiny


def test_it_begins_as_lora_on_q_k_and_v(images: Tensor) -> None:
    gated = kick(built(GatedKoRA(2, 4, alpha=0.5), backbone=tiny("tiny_vit")))
    lora = built(LoRA(2, alpha=0.5, sites=["q", "k", "v"]), backbone=tiny("tiny_vit"))
    for key, block in gated.adapter.gated.items():
        nn.init.zeros_(block.gate)
        for name, delta in block.deltas.items():
            mine = lora.adapter.deltas[f"{key[:3]}_{name}"]
            mine.load_state_dict(delta.state_dict())
    lora.head.load_state_dict(gated.head.state_dict())
    torch.testing.assert_close(gated(images), lora(images), rtol=1e-5, atol=1e-5)


def test_the_corrections_meet_in_the_network_and_v_is_given_what_it_says(images: Tensor) -> None:
    task = kick(built(GatedKoRA(2, 4, alpha=0.5), backbone=tiny("tiny_vit")), scale=0.5)
    block = task.adapter.gated["b00_qkv"]
    assert isinstance(block, GatedBlock)
    x = torch.randn(2, 5, 32)
    deltas = [0.5 * x @ block.deltas[name].down_RI.T @ block.deltas[name].up_OR.T for name in "qkv"]
    hidden = F.gelu(block.compose(torch.cat(deltas, dim=-1)))
    expected = [*deltas[:2], deltas[2] + block.gate * block.release(hidden)]
    torch.testing.assert_close(block(x), torch.cat(expected, dim=-1), rtol=1e-4, atol=1e-5)
