"""Text, token by token: the same steps with the quantized model in PyTorch and with its program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from text import LENGTH


def generate(model: Callable[..., Any], prompt: list[int], size: int) -> list[int]:
    """Tokens that follow a prompt, each the one with the largest score.

    The prompt goes in with one call, and each token with another; what came before is in the buffers.

    Args:
        model: the decoder with its cache, or a program of it.
        prompt: the first tokens.
        size: how many follow, as far as the cache holds them.
    """
    found: list[int] = []
    given, position = prompt, 0
    with torch.no_grad():
        while len(found) < size and position + len(given) <= LENGTH:
            positions = torch.arange(position, position + len(given))
            scores = model(torch.tensor([given]), positions)
            position += len(given)
            given = [int(scores[0, -1].argmax())]
            found += given
    return found
