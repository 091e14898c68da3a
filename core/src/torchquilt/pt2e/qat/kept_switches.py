"""Switches of a module that are part of ``state_dict()``: what it may do, and what it stands still for.

They are plain booleans, on which compiled code can depend, and a tensor in the state, as files of states want
it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch


class KeptSwitches(torch.nn.Module, ABC):
    """Base of modules with switches in their state."""

    #: name of the switches in the state
    STATE_NAME: ClassVar[str]

    @abstractmethod
    def switches(self) -> tuple[bool, ...]:
        """The switches as they are."""

    @abstractmethod
    def switch(self, switches: tuple[bool, ...]) -> str:
        """Take switches out of a state; answers why they cannot be taken, empty where they are."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + self.STATE_NAME] = torch.tensor(self.switches(), dtype=torch.uint8)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *others)
        _, is_strict, missing, unexpected, errors = others
        name = prefix + self.STATE_NAME
        if name not in state_dict:
            missing.extend([name] if is_strict else [])
            return
        if name in unexpected:
            unexpected.remove(name)
        problem = self.switch(tuple(map(bool, state_dict[name].reshape(-1).tolist())))
        if problem:
            errors.append(f"{prefix[:-1]}: {problem}")
