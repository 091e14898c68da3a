"""Lowering leaves a program as it is, and takes models that rely on the layout of attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import torchquilt as tq
from plugins.executorch.models import converted, xnnpack
from strategies import normal


class WithTables(nn.Module):
    """A layer, and buffers in no state dict: one for the delegate, two that ExecuTorch computes with."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc = nn.Linear(8, 8)
        self.register_buffer("offset", normal(8), persistent=False)
        self.register_buffer("index", torch.tensor([[1, 0], [3, 2]]), persistent=False)
        self.register_buffer("table", normal(4, 8, seed=1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Add an offset, and rows that are the same in each call."""
        return self.fc(x) + self.offset + self.table[self.index.view(-1)]


def test_the_tables_of_a_program_are_left_as_they_are() -> None:
    """It can be run and lowered again, and the program is verified with it."""
    x = normal(4, 8)
    exported = torch.export.export(WithTables().eval(), (x,))
    constants, state = {*exported.constants}, {*exported.state_dict}
    assert constants == {"offset", "index", "table"}
    for _ in range(2):
        program = tq.lower(exported, (x,), backends=["xnnpack"], verify=True)
        assert program.verification is not None
        assert ({*exported.constants}, {*exported.state_dict}) == (constants, state)
    assert torch.allclose(program.run(x), exported.module()(x), atol=1e-5)


class Attention(nn.Module):
    """Attention as in GPT-2: what it returns is viewed as rows in front of ``addmm``."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(16, 48)
        self.between = between
        self.weight = nn.Parameter(torch.randn(16, 16) / 4)
        self.bias = nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> Tensor:
        """Attend to ``x`` of shape (rows, length, 16)."""
        q, k, v = (one.view(*one.shape[:2], 2, 8).transpose(1, 2) for one in self.qkv(x).chunk(3, dim=-1))
        found = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
        rows = self.between(found.reshape(*x.shape).contiguous()).view(-1, 16)
        return torch.addmm(self.bias, rows, self.weight).view(*x.shape)


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize(
    "between",
    [
        pytest.param(nn.Identity(), id="right behind"),
        pytest.param(nn.Sigmoid(), id="behind sigmoid", marks=pytest.mark.long),
    ],
)
def test_attention_may_be_viewed_as_rows(between: nn.Module, is_dynamic: bool) -> None:
    """For several samples, whose attention ExecuTorch lays out otherwise than torch."""
    x = normal(2, 6, 16)
    model = converted(Attention(between), xnnpack(is_dynamic=is_dynamic), x)
    program = tq.lower(model, (x,), verify=True)
    assert program.verification is not None
