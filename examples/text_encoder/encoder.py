"""The float side: the encoder as sentence-transformers runs it, its batches of tokens, and its export."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from inputs import BadInput, ModelFolder

TRUNCATE_TOKENS = 128
"""Inputs are cut here, as they were in the training of all-MiniLM-L6-v2 (its recipe allows 256).

On the Lee set the float model reaches Pearson 0.649 at 64 tokens, 0.653 at 96, 0.654 at 128 and 0.656
uncut, so hardly anything is lost.
"""
BATCH = 16
"""Sentences in a batch, which is padded to its longest."""

Batch = tuple[Tensor, Tensor]
"""``(input_ids, attention_mask)``, both int64 of shape (sentences, tokens)."""


class SentenceEncoder(nn.Module):
    """Transformer, mean over the tokens that are not padding, and L2 normalisation if the recipe says so."""

    def __init__(self, transformer: nn.Module, *, normalize: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.normalize = normalize

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``(sentences, tokens)`` twice, int64, to ``(sentences, width)``, float32."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden.dtype)
        # The lower bound is the recipe's own (sentence_transformers, Pooling): no division by 0.
        pooled = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return nn.functional.normalize(pooled, p=2.0, dim=1) if self.normalize else pooled


@dataclass(frozen=True)
class LoadedEncoder:
    """A float encoder with its tokenizer."""

    model: SentenceEncoder
    tokenizer: Callable[..., Any]
    folder: ModelFolder

    @property
    def max_tokens(self) -> int:
        """Length at which inputs are cut."""
        return min(TRUNCATE_TOKENS, self.folder.max_seq_length)


def load_encoder(folder: ModelFolder) -> LoadedEncoder:
    """Load model and tokenizer from ``folder``, nothing from the network."""
    try:
        # Eager attention is plain matmul, add and softmax, with no fused op that a backend may not know.
        transformer = AutoModel.from_pretrained(
            folder.path, attn_implementation="eager", local_files_only=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(folder.path, local_files_only=True)
    except Exception as error:
        # What a broken folder raises differs by what is broken, and by the library that reads the part.
        reason = str(error).strip().partition("\n")[0]
        raise BadInput(f"the model in {folder.path} cannot be loaded: {reason}") from error
    # BERT's own pooler is not part of the recipe. Nothing reads it, so it must not count as size of float.
    if getattr(transformer, "pooler", None) is not None:
        transformer.pooler = None
    return LoadedEncoder(SentenceEncoder(transformer, normalize=folder.normalize).eval(), tokenizer, folder)


def tokenize(encoder: LoadedEncoder, texts: tuple[str, ...]) -> list[Batch]:
    """The texts in batches, each cut at `LoadedEncoder.max_tokens` and padded to its own longest."""
    batches = []
    for start in range(0, len(texts), BATCH):
        tokens = encoder.tokenizer(
            list(texts[start : start + BATCH]),
            padding=True,
            truncation=True,
            max_length=encoder.max_tokens,
            return_tensors="pt",
        )
        batches.append((tokens["input_ids"], tokens["attention_mask"]))
    return batches


def count_cut(encoder: LoadedEncoder, texts: tuple[str, ...]) -> int:
    """Number of texts that are longer than what the encoder gets to see."""
    return sum(len(encoder.tokenizer(text)["input_ids"]) > encoder.max_tokens for text in texts)


def dynamic_shapes(encoder: LoadedEncoder) -> tuple[dict[int, Any], dict[int, Any]]:
    """Any number of sentences, of any length that the recipe of the model allows."""
    free = {
        0: torch.export.Dim("batch", min=1),
        1: torch.export.Dim("tokens", min=2, max=encoder.folder.max_seq_length),
    }
    return free, free


def embed(model: Callable[..., Tensor], batches: Iterable[Batch]) -> Tensor:
    """The embeddings of all sentences, shape (sentences, width)."""
    with torch.no_grad():
        return torch.cat([model(*batch) for batch in batches])
