"""Hidden states on an accelerator that torch only pretends to have, and on a CPU."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from pat.pruning.calibration.hidden import HOST, HiddenStates


def test_they_wait_in_the_hosts_memory_and_come_back_to_the_device() -> None:
    device = torch.device("cuda:0")
    with FakeTensorMode():
        states = HiddenStates(torch.empty(2, length, device=device) for length in (3, 4))
        states[1] = torch.empty(2, 5, device=device)
        assert {kept.device for kept in states._kept} == {HOST}
        assert [(each.device, tuple(each.shape)) for each in states] == [(device, (2, 3)), (device, (2, 5))]
        assert states.nbytes == 4 * 2 * (3 + 5)


def test_on_a_cpu_nothing_is_copied_and_a_copy_is_a_list_of_its_own() -> None:
    first, second = torch.ones(2), torch.zeros(2)
    states = HiddenStates([first])
    other = states.copy()
    other[0] = second
    other.append(first)
    assert states[0] is first and other[0] is second and other[1] is first
    assert (len(states), len(other)) == (1, 2)
