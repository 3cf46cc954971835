"""Hidden states on an accelerator that torch only pretends to have, and on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pat.pruning.calibration.calls import Call, recording
from pat.pruning.calibration.hidden import HOST, HiddenStates


def test_they_wait_in_the_hosts_memory_and_come_back_to_the_device() -> None:
    device = torch.device("cuda:0")
    with FakeTensorMode():
        states = HiddenStates(torch.empty(2, length, device=device) for length in (3, 4))
        states[1] = torch.empty(2, 5, device=device)
        assert {kept.device for kept in states._kept} == {HOST}
        assert [(each.device, tuple(each.shape)) for each in states] == [(device, (2, 3)), (device, (2, 5))]
        assert states.nbytes == 4 * 2 * (3 + 5)


def test_what_a_layer_is_called_with_waits_there_too_and_once_for_all_layers() -> None:
    """Fails if masks of all micro-batches, T^2 of a row, stay on the device for the whole walk."""
    device = torch.device("cuda:0")
    with FakeTensorMode():
        calls: list[list[Call]] = [[], []]
        layers = [Layer() for _ in calls]
        real = torch.ones(2, 3, dtype=torch.bool)
        hidden, mask = torch.empty(2, 3, 4, device=device), torch.empty(2, 1, 3, 3, device=device)
        with recording(layers, calls, HiddenStates(), [real]):
            layers[0].forward(hidden, attention_mask=mask)
        (call,) = calls[0]
        assert call.kwargs["attention_mask"].device == HOST
        assert call.on(device).kwargs["attention_mask"].device == device
        assert call(Layer(), hidden).device == device


class Layer(nn.Module):
    """Refuses a mask that is elsewhere."""

    def forward(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        assert attention_mask.device == hidden.device
        return hidden


def test_on_a_cpu_nothing_is_copied_and_a_copy_is_a_list_of_its_own() -> None:
    first, second = torch.ones(2), torch.zeros(2)
    states = HiddenStates([first])
    other = states.copy()
    other[0] = second
    other.append(first)
    assert states[0] is first and other[0] is second and other[1] is first
    assert (len(states), len(other)) == (1, 2)
