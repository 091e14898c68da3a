"""Quality of embeddings, and how close they stay to those of the float model."""

from __future__ import annotations

import torch
from torch import Tensor

TIE = 1e-6
"""Cosines this close count as equal: float32 hardly tells them apart, and a file may repeat a sentence."""


def cosines(embeddings: Tensor) -> Tensor:
    """Cosine similarity of each pair of rows: (sentences, width) -> (sentences, sentences)."""
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    return unit @ unit.T


def pearson_with_ratings(embeddings: Tensor, ratings: tuple[tuple[float, ...], ...]) -> float:
    """Pearson correlation of the cosine of each pair with its human rating, each pair once."""
    rows, columns = torch.triu_indices(len(ratings), len(ratings), offset=1)
    human = torch.tensor(ratings, dtype=torch.float64)[rows, columns]
    model = cosines(embeddings.double())[rows, columns]
    return float(torch.corrcoef(torch.stack([model, human]))[0, 1])


def mean_cosine(embeddings: Tensor, reference: Tensor) -> float:
    """Mean over the sentences of the cosine between its two embeddings; 1 is full agreement."""
    return float(torch.nn.functional.cosine_similarity(embeddings.double(), reference.double()).mean())


def neighbours_kept(embeddings: Tensor, reference: Tensor) -> float:
    """Share of the sentences whose nearest other sentence is the same under both embeddings, from 0 to 1.

    Where several are equally near under ``reference``, any of them counts.
    """
    expected = _without_self(reference)
    chosen = _without_self(embeddings).argmax(dim=1, keepdim=True)
    kept = expected.gather(1, chosen) >= expected.amax(dim=1, keepdim=True) - TIE
    return float(kept.double().mean())


def _without_self(embeddings: Tensor) -> Tensor:
    return cosines(embeddings).fill_diagonal_(-torch.inf)
