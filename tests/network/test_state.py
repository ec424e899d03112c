"""Models, thread count and random generators are the same after a block as before it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from cfptq.network.state import preserved_state


def _model() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
    model[1].eval()
    model[0].weight.requires_grad_(False)
    return model


def test_everything_is_as_it_was_even_where_the_block_raises() -> None:
    model = _model()
    x = torch.randn(8, 4)
    model(x).sum().backward()
    flags = [m.training for m in model.modules()]
    grad = model[3].weight.grad
    assert grad is not None
    grad_before, buffers = grad.clone(), {name: (b, b.clone()) for name, b in model.named_buffers()}
    state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="on purpose"), preserved_state(model, threads=threads + 1):
        assert not any(m.training for m in model.modules())
        assert torch.get_num_threads() == threads + 1
        model.train()
        model.requires_grad_(True)
        model(x).sum().backward()
        model[1].running_mean.data.add_(1)
        model[1].register_buffer("extra", torch.ones(1))
        model[1].num_batches_tracked = torch.tensor(99)
        np.random.rand(), random.random(), torch.rand(1)
        raise RuntimeError("on purpose")
    assert [m.training for m in model.modules()] == flags
    assert model[3].weight.grad is grad
    assert torch.equal(grad, grad_before)
    assert not model[0].weight.requires_grad
    assert model[0].weight.grad is None
    assert set(dict(model.named_buffers())) == set(buffers)
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name][0]
        assert torch.equal(buffer, buffers[name][1])
    assert torch.equal(torch.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])
    assert random.getstate() == state[2]
    assert torch.get_num_threads() == threads


def test_gradients_inside_the_block_start_from_none() -> None:
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).backward()
    with preserved_state(model):
        assert model.weight.grad is None


def test_a_module_that_two_models_share_is_restored_once() -> None:
    shared = nn.Linear(2, 2)
    first, second = nn.Sequential(shared), nn.Sequential(shared, nn.Dropout())
    second.eval()
    shared.train()
    with preserved_state(first, second):
        assert not shared.training
    assert shared.training
    assert not second.training


def test_a_module_from_torch_export_is_accepted() -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(3, 2),))
    module = program.module()
    with preserved_state(module):
        module(torch.ones(3, 2))
