"""Where ZeRO 3 computes otherwise than the other stages, all stages are made to compute alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pat.zero.stage_parity import compute_as_everywhere


class Inside(nn.Module):
    """Uses x twice; W is a matrix of its own, so that each use has another gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 32, bias=False), nn.Linear(32, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of both."""
        return self.a(x) + self.b(x)


def test_a_module_adds_up_its_own_gradients_first() -> None:
    torch.manual_seed(0)
    module = Inside().bfloat16()
    x = torch.randn(64, 32).bfloat16().requires_grad_()
    upstream, outside = torch.randn(2, 64, 32).bfloat16()
    a, b = upstream @ module.a.weight.detach(), upstream @ module.b.weight.detach()

    def gradient() -> Tensor:
        y = module(x)
        return torch.autograd.grad([y, x * 1], x, [upstream, outside])[0]

    assert not torch.equal(gradient(), outside + (a + b))
    compute_as_everywhere(module, partitioned=False)
    assert torch.equal(gradient(), outside + (a + b))
    with torch.no_grad():
        assert torch.equal(module(x), module.a(x) + module.b(x))


@pytest.fixture
def linear(monkeypatch: pytest.MonkeyPatch) -> Any:
    """DeepSpeed's linear map of ZeRO 3, given back as it was."""
    from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3

    for name in ("forward", "backward"):
        monkeypatch.setattr(LinearFunctionForZeroStage3, name, staticmethod(getattr(LinearFunctionForZeroStage3, name)))
    return LinearFunctionForZeroStage3


def test_zero_3_rounds_a_linear_map_once(linear: Any) -> None:
    torch.manual_seed(0)
    x, w, b = (torch.randn(shape).bfloat16().requires_grad_() for shape in ((4, 16, 32), (24, 32), (24,)))
    expected = nn.functional.linear(x, w, b)
    assert not torch.equal(linear.apply(x, w, b), expected)
    compute_as_everywhere(nn.Identity(), partitioned=True)
    found = linear.apply(x, w, b)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(expected)
    mine, theirs = (torch.autograd.grad(y, (x, w, b), upstream) for y in (found, expected))
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))


def test_zero_3_sums_up_the_gradient_of_a_bias_as_torch_does_however_it_lies(linear: Any) -> None:
    """Would catch: keys of attention, whose gradient is a transposed product."""
    torch.manual_seed(0)
    x, w, b = (torch.randn(shape).requires_grad_() for shape in ((4, 40, 32), (24, 32), (24,)))
    upstream = torch.randn(4, 24, 40).transpose(1, 2)

    def gradients(y: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(y, (x, w, b), upstream))

    expected = gradients(torch.ops.aten.linear(x, w, b))
    assert not torch.equal(gradients(linear.apply(x, w, b))[2], expected[2])
    compute_as_everywhere(nn.Identity(), partitioned=True)
    once = linear.backward
    compute_as_everywhere(nn.Identity(), partitioned=True)
    assert linear.backward is once, "another engine in the process"
    found = gradients(linear.apply(x, w, b))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
