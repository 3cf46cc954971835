"""Where ZeRO 3 computes otherwise than the other stages, all stages are made to compute alike."""

from __future__ import annotations

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


def test_zero_3_rounds_a_linear_map_once() -> None:
    from deepspeed.runtime.zero.linear import LinearFunctionForZeroStage3

    torch.manual_seed(0)
    x, w, b = (torch.randn(shape).bfloat16().requires_grad_() for shape in ((4, 16, 32), (24, 32), (24,)))
    plain = LinearFunctionForZeroStage3.forward
    try:
        expected = nn.functional.linear(x, w, b)
        assert not torch.equal(LinearFunctionForZeroStage3.apply(x, w, b), expected)
        compute_as_everywhere(nn.Identity(), partitioned=True)
        found = LinearFunctionForZeroStage3.apply(x, w, b)
        assert torch.equal(found, expected)
        upstream = torch.randn_like(expected)
        mine, theirs = (torch.autograd.grad(y, (x, w, b), upstream) for y in (found, expected))
        assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    finally:
        LinearFunctionForZeroStage3.forward = staticmethod(plain)
