"""Parameters that no loss reaches, on one rank, where DeepSpeed's reduction does not make their gradients."""

from types import SimpleNamespace

import pytest
import torch

from rlhf.runtime.compat.deepspeed import fill_gradients


@pytest.mark.parametrize("reduces", [False, True])
def test_what_no_loss_reaches_has_zeros_where_no_reduction_makes_them(reduces):
    module = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("read", "idle", "frozen")})
    module["frozen"].requires_grad_(False)
    module["read"](torch.ones(1, 2)).sum().backward()
    before = module["read"].weight.grad.clone()
    fill_gradients(SimpleNamespace(module=module, enable_backward_allreduce=reduces))
    assert torch.equal(module["read"].weight.grad, before) and module["frozen"].weight.grad is None
    idle = module["idle"].weight.grad
    assert idle is None if reduces else torch.equal(idle, torch.zeros(2, 2))
