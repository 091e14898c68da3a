"""Operators that ``train()`` and ``eval()`` switch, as modules: dropout, recurrent layers, norms.

As a module, an operator follows the mode of the model as any other does. Its literals are never written
anew, so they are what they were after any number of switches.
"""

from __future__ import annotations

from typing import Any

import torch

from torchquilt.graph.training_mode import off_value


class SwitchedOperator(torch.nn.Module):
    """An operator whose flag says training where the module is in training mode.

    Args:
        operator: its overload, as ``"aten.dropout.default"``.
        flag: name of the argument that says so.
        when_training: its value in training mode: True, or the probability of attention.
    """

    def __init__(self, operator: str, flag: str, when_training: Any = True) -> None:
        super().__init__()
        self.operator = operator
        self.flag = flag
        self.when_training = when_training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the operator with all of its other arguments."""
        value = self.when_training if self.training else off_value(self.flag)
        return self.target(*args, **kwargs, **{self.flag: value})

    @property
    def target(self) -> Any:
        """The operator itself."""
        found: Any = torch.ops
        for name in self.operator.split("."):
            found = getattr(found, name)
        return found
