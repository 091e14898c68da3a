"""A small decoder of the kind of Llama, and the same with a cache of keys and values. Plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, silu

from text import LENGTH, VOCABULARY

WIDTH, HIDDEN, LAYERS = 128, 256, 2
HEADS, KEY_HEADS = 4, 2
"""Two heads that ask read the keys and values of one."""
HEAD = WIDTH // HEADS
BATCH = 8
LEARNING_RATE = 4e-3
WARM_UP = 0.1
"""Share of the steps in which the learning rate rises; then it falls, to zero."""


class RMSNorm(nn.Module):
    """Divide by the root of the mean square."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Shape in, shape out."""
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.weight


class Attention(nn.Module):
    """Attention with grouped heads of keys and values, and positions as rotations."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, HEADS * HEAD, bias=False)
        self.key = nn.Linear(WIDTH, KEY_HEADS * HEAD, bias=False)
        self.value = nn.Linear(WIDTH, KEY_HEADS * HEAD, bias=False)
        self.output = nn.Linear(HEADS * HEAD, WIDTH, bias=False)

    def heads(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (batch, heads, tokens, HEAD)."""
        query, key, value = (
            part(x).unflatten(-1, (-1, HEAD)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return turned(query, turn), turned(key, turn), value

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """Result of the attention: (batch, tokens, WIDTH)."""
        key, value = (part.repeat_interleave(HEADS // KEY_HEADS, dim=1) for part in (key, value))
        scores = query @ key.transpose(-1, -2) / math.sqrt(HEAD) + mask
        found = scores.softmax(-1) @ value
        result: Tensor = self.output(found.transpose(1, 2).flatten(2))
        return result


def turned(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate each pair of elements by the angles of its position."""
    cosine, sine = turn
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


class Layer(nn.Module):
    """Attention, then a gated product."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention, self.before_product = RMSNorm(), RMSNorm()
        self.attention = Attention()
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.up = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH, bias=False)

    def product(self, x: Tensor) -> Tensor:
        """Shape in, shape out."""
        x = self.before_product(x)
        result: Tensor = self.down(silu(self.gate(x)) * self.up(x))
        return result


class Decoder(nn.Module):
    """The network as it is trained: whole sequences, without a cache."""

    cosine: Tensor
    sine: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = RMSNorm()
        frequencies = 10000.0 ** -(torch.arange(0, HEAD, 2) / HEAD)
        angles = torch.arange(LENGTH)[:, None] * frequencies
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())
        nn.init.normal_(self.table.weight, std=WIDTH**-0.5)

    def scores(self, x: Tensor) -> Tensor:
        """Score of each token to come next: (batch, tokens, VOCABULARY). The table is used once more."""
        return linear(self.norm(x), self.table.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(batch, tokens)``, int64, to ``(batch, tokens, VOCABULARY)``."""
        size = tokens.shape[1]
        mask = torch.full((size, size), -torch.inf).triu(1)
        turn = self.cosine[:size], self.sine[:size]
        x = self.table(tokens)
        for layer in self.layers:
            x = x + layer.attention.attend(*layer.attention.heads(layer.before_attention(x), turn), mask)
            x = x + layer.product(x)
        return self.scores(x)


class CachedDecoder(nn.Module):
    """The network as it generates: some tokens a call, keys and values of those before in buffers."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder
        for number in range(LAYERS):
            for name in ("keys", "values"):
                self.register_buffer(f"{name}_{number}", torch.zeros(1, KEY_HEADS, LENGTH, HEAD))

    def forward(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """``(1, tokens)`` and their positions ``(tokens,)``, int64, to ``(1, tokens, VOCABULARY)``."""
        decoder = self.decoder
        turn = decoder.cosine[positions], decoder.sine[positions]
        is_later = torch.arange(LENGTH) > positions[:, None]
        mask = torch.where(is_later, -1e4, 0.0)
        x = decoder.table(tokens)
        for number, layer in enumerate(decoder.layers):
            query, key, value = layer.attention.heads(layer.before_attention(x), turn)
            keys, values = getattr(self, f"keys_{number}"), getattr(self, f"values_{number}")
            keys.index_copy_(2, positions, key)
            values.index_copy_(2, positions, value)
            x = x + layer.attention.attend(query, keys, values, mask)
            x = x + layer.product(x)
        return decoder.scores(x)


def train(sequences: Tensor, steps: int, seed: int = 0) -> Decoder:
    """A decoder, trained from nothing.

    Args:
        sequences: int64 (sequences, LENGTH + 1).
        steps: batches.
        seed: of the weights and the order of the sequences.
    """
    torch.manual_seed(seed)
    decoder = Decoder().train()
    optimizer = torch.optim.AdamW(
        decoder.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    warm_up = max(1, int(WARM_UP * steps))

    def rate(step: int) -> float:
        done = max(0, step - warm_up) / max(1, steps - warm_up)
        return min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * done))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for _ in range(steps):
        batch = sequences[torch.randint(len(sequences), (BATCH,))]
        loss = cross_entropy(decoder(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return decoder.eval()
