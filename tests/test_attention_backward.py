"""Claims about the backward pass of attention on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from kora.attention_backward import plain_attention_backward

CPU = torch.device("cpu")
FEW, MANY = 26, 200


@pytest.fixture(autouse=True)
def _torch_can() -> None:
    if not hasattr(torch.library, "get_kernel"):
        pytest.skip("this torch does not hand out its kernels")


def gradients(
    dtype: torch.dtype, tokens: int = FEW, keys: int | None = None, **options: Any
) -> list[Tensor]:
    """Of query, key and value, from the same numbers each time."""
    generator = torch.Generator().manual_seed(0)
    sizes = (tokens, keys or tokens, keys or tokens)
    inputs = [
        torch.randn(4, size, 3, 64, generator=generator).to(dtype).transpose(1, 2) for size in sizes
    ]
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = F.scaled_dot_product_attention(*leaves, **options)
    weights = torch.randn(output.shape, generator=generator).to(dtype)
    return list(torch.autograd.grad(output, leaves, weights))


def is_plain() -> bool:
    """Whether the backward pass of few tokens in bfloat16 takes a softmax apart."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        gradients(torch.bfloat16)
    return any(event.key == "aten::_softmax_backward_data" for event in seen.key_averages())


@pytest.mark.parametrize("keys", [None, 40])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_as_near_to_the_exact_gradients_as_torchs_own(
    keys: int | None, scale: float | None
) -> None:
    exact = gradients(torch.float64, keys=keys, scale=scale)
    own = gradients(torch.bfloat16, keys=keys, scale=scale)
    with plain_attention_backward(CPU):
        plain = gradients(torch.bfloat16, keys=keys, scale=scale)
    for right, ours, torchs in zip(exact, plain, own, strict=True):
        assert ours.dtype == torch.bfloat16
        far = [(x.double() - right).norm() / right.norm() for x in (ours, torchs)]
        assert far[0] < 1.2 * far[1] + 1e-4


def test_it_is_used_within_and_nowhere_else_also_one_in_the_other_and_behind_an_error() -> None:
    assert not is_plain()
    with plain_attention_backward(CPU):
        assert is_plain()
        with plain_attention_backward(CPU):
            assert is_plain()
        assert is_plain()
    assert not is_plain()
    with pytest.raises(RuntimeError, match="stop"), plain_attention_backward(CPU):
        raise RuntimeError("stop")
    assert not is_plain()


@pytest.mark.parametrize(
    ("dtype", "tokens", "options"),
    [
        (torch.float32, FEW, {}),
        (torch.bfloat16, MANY, {}),
        (torch.bfloat16, FEW, {"is_causal": True}),
        (torch.bfloat16, FEW, {"attn_mask": torch.ones(FEW, FEW).tril().bool()}),
        (torch.bfloat16, FEW, {"attn_mask": torch.linspace(-1, 1, FEW).bfloat16().repeat(FEW, 1)}),
    ],
    ids=["float32", "many tokens", "causal", "mask", "bias"],
)
def test_what_it_is_not_made_for_stays_torchs_own_to_the_bit(
    dtype: torch.dtype, tokens: int, options: dict[str, Any]
) -> None:
    own = gradients(dtype, tokens, **options)
    with plain_attention_backward(CPU):
        again = gradients(dtype, tokens, **options)
    for left, right in zip(own, again, strict=True):
        assert torch.equal(left, right)


@pytest.mark.filterwarnings("error")
def test_it_says_nothing() -> None:
    with plain_attention_backward(CPU):
        gradients(torch.bfloat16)


def test_an_older_torch_and_another_device_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with plain_attention_backward(torch.device("cuda")):
        assert not is_plain()
    monkeypatch.delattr(torch.library, "get_kernel")
    with plain_attention_backward(CPU):
        assert not is_plain()


def test_nothing_more_is_kept_for_it() -> None:
    def kept() -> int:
        sizes: list[int] = []
        x = torch.ones(2, 3, FEW, 64, dtype=torch.bfloat16, requires_grad=True)
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: (sizes.append(tensor.numel()), tensor)[1], lambda tensor: tensor
        )
        with hooks:
            F.scaled_dot_product_attention(x, x, x)
        return sum(sizes)

    before = kept()
    assert before > 0
    with plain_attention_backward(CPU):
        assert kept() == before
