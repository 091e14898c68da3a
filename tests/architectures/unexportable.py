"""Architectures that ``torch.export`` refuses, with what it says."""

from __future__ import annotations

from typing import Any

import attrs
import transformers
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from architectures import PAIR, PATCHES, TEXT, Architecture, captioned, made, normal, padded, sentence_pair


@attrs.frozen
class Refusal:
    """An architecture that torch cannot export.

    Args:
        architecture: which one.
        error: the type of what torch raises.
        message: a part of what it says.
        reason: what in the model it is about.
    """

    architecture: Architecture
    error: type[Exception]
    message: str
    reason: str

    def __str__(self) -> str:
        return str(self.architecture)


def _depends_on_data(name: str, make: Any, inputs: Any, condition: str, reason: str) -> Refusal:
    return Refusal(Architecture(name, make, inputs), GuardOnDataDependentSymNode, condition, reason)


def _cannot_cast(name: str, make: Any) -> Refusal:
    reason = "the router casts its linear in forward, which replaces parameters that export has made fake"
    return Refusal(
        Architecture(name, make, sentence_pair), RuntimeError, "Couldn't swap Linear.weight", reason
    )


def _waves(seed: int) -> Any:
    return {"input_values": normal(2, 1, 640, seed=seed)}


_SEQ2SEQ = transformers.AutoModelForSeq2SeqLM
_CODEC = {
    "num_filters": 4,
    "codebook_size": 16,
    "codebook_dim": 16,
    "upsampling_ratios": [4, 4],
    "sampling_rate": 640,
}

TABLE = (
    _depends_on_data(
        "longformer",
        made("longformer", **TEXT, attention_window=4),
        padded(),
        "Eq(u0, 1)",
        "it asks whether the mask has tokens of global attention",
    ),
    _depends_on_data(
        "led",
        made(
            "led",
            _SEQ2SEQ,
            **PAIR,
            attention_window=4,
            max_encoder_position_embeddings=64,
            max_decoder_position_embeddings=64,
        ),
        sentence_pair,
        "Eq(u0, 1)",
        "it asks whether the mask has tokens of global attention",
    ),
    _depends_on_data(
        "fsmt",
        made("fsmt", _SEQ2SEQ, **PAIR, src_vocab_size=99, tgt_vocab_size=99, langs=["en", "de"]),
        sentence_pair,
        "Eq(u0, 1)",
        "it asks whether the mask has padding",
    ),
    _depends_on_data(
        "vilt",
        made("vilt", **{**TEXT, **PATCHES}, modality_type_vocab_size=2, max_image_length=-1),
        captioned,
        "u0 > 1",
        "it makes as many patches as the largest image in the batch has",
    ),
    _depends_on_data(
        "encodec",
        made(
            "encodec", **_CODEC, hidden_size=16, num_lstm_layers=1, target_bandwidths=[1.5], audio_channels=1
        ),
        _waves,
        "Eq(u0, 1)",
        "it computes in tensors by how much to pad, and compares that with the length",
    ),
    _depends_on_data(
        "mimi",
        made(
            "mimi",
            **_CODEC,
            hidden_size=32,
            vector_quantization_hidden_dimension=16,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            intermediate_size=64,
            num_quantizers=2,
            num_semantic_quantizers=1,
            frame_rate=20,
            upsample_groups=32,
            use_cache=False,
        ),
        _waves,
        "> 1",
        "it computes in tensors by how much to pad, and compares that with the length",
    ),
    _cannot_cast(
        "switch_transformers",
        made(
            "switch_transformers",
            _SEQ2SEQ,
            vocab_size=99,
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            num_experts=4,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            decoder_start_token_id=0,
            use_cache=False,
        ),
    ),
    _cannot_cast(
        "nllb-moe",
        made(
            "nllb-moe",
            _SEQ2SEQ,
            **{**PAIR, "encoder_layers": 2, "decoder_layers": 2},
            num_experts=4,
            encoder_sparse_step=2,
            decoder_sparse_step=2,
        ),
    ),
)
