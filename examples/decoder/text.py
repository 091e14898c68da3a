"""Text to train on: what Python itself ships about its language, cut into tokens and into sequences."""

from __future__ import annotations

import re
from pydoc_data.topics import topics

import attrs
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

VOCABULARY = 1024
"""Tokens: bytes, and the pairs of tokens that come most often."""
LENGTH = 128
"""Tokens of a sequence."""
TEST_SHARE = 0.1
"""Share of the sequences that are kept from training."""


@attrs.frozen(eq=False)
class Text:
    """The text as sequences of tokens.

    Args:
        tokenizer: makes tokens of text, and text of tokens.
        training: int64 (sequences, LENGTH + 1); each begins with the last token of the one before it.
        test: likewise.
    """

    tokenizer: Tokenizer
    training: Tensor
    test: Tensor


def python_topics() -> Text:
    """The pages that ``help()`` shows about Python's language.

    The tokens are learned from all of it. Every tenth sequence is kept from training.
    """
    text = re.sub(r"[ \t]+", " ", "\n".join(topics[name] for name in sorted(topics)))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    tokens = torch.tensor(tokenizer.encode(text).ids)
    sequences = tokens.unfold(0, LENGTH + 1, LENGTH)
    is_test = torch.arange(len(sequences)) % round(1 / TEST_SHARE) == 0
    return Text(tokenizer, sequences[~is_test], sequences[is_test])
