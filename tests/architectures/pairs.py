"""Models of two sequences or of other data: translation, sound, images with text, series of numbers."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from architectures import (
    PAIR,
    PATCHES,
    TEXT,
    Architecture,
    Inputs,
    captioned,
    ids,
    made,
    mask,
    normal,
    sentence_pair,
)

_SPEECH = transformers.AutoModelForSpeechSeq2Seq
_T5 = {
    "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_decoder_layers": 1,
    "num_heads": 4, "decoder_start_token_id": 0, "use_cache": False,
}  # fmt: skip
#: Two convolutions over the wave and a transformer, as in wav2vec 2.0; no random masking.
_WAVES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": [16, 16], "conv_stride": [5, 4], "conv_kernel": [10, 5], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 32,
    "apply_spec_augment": False,
}  # fmt: skip
#: A text tower and an image tower.
_TOWERS = {
    "text_config": {**TEXT, "max_position_embeddings": 32, "eos_token_id": 2},
    "vision_config": PATCHES,
    "projection_dim": 16,
}


def _translation(kind: str, **sizes: Any) -> Any:
    return made(kind, transformers.AutoModelForSeq2SeqLM, **sizes)


def _wave(seed: int) -> Inputs:
    return {"input_values": normal(2, 800, seed=seed)}


def _padded_wave(seed: int) -> Inputs:
    return {**_wave(seed), "attention_mask": mask(2, 800, padding=200)}


def _frames(length: int, bins: int, said: int) -> Any:
    """A spectrogram, and what is said in it."""
    return lambda seed: {
        "input_features": normal(2, length, bins, seed=seed),
        "decoder_input_ids": ids(2, said, seed),
    }


def _with_image_tokens(seed: int) -> Inputs:
    """A text with a token for each of the 16 patches of an image."""
    text = ids(2, 24, seed)
    text[:, :16] = 98
    return {"input_ids": text, "attention_mask": mask(2, 24), "pixel_values": normal(2, 3, 32, 32, seed=seed)}


def _series(seed: int) -> Inputs:
    return {
        "past_values": normal(2, 23, seed=seed),
        "past_time_features": normal(2, 23, 2, seed=seed + 100),
        "past_observed_mask": torch.ones(2, 23),
        "future_values": normal(2, 4, seed=seed + 200),
        "future_time_features": normal(2, 4, 2, seed=seed + 300),
    }


def _caption_writer() -> Any:
    """A ViT, and a decoder that looks at what it saw."""
    decoder = transformers.TrOCRConfig(
        vocab_size=99, d_model=32, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64,
        max_position_embeddings=64, cross_attention_hidden_size=32, use_cache=False,
    )  # fmt: skip
    encoder = transformers.ViTModel(transformers.ViTConfig(**PATCHES))
    return transformers.VisionEncoderDecoderModel(
        encoder=encoder, decoder=transformers.TrOCRForCausalLM(decoder)
    )


TABLE = (
    Architecture("t5", _translation("t5", **_T5), sentence_pair),
    Architecture("bart", _translation("bart", **PAIR), sentence_pair),
    Architecture(
        "pegasus_x", _translation("pegasus_x", **PAIR, block_size=4, num_global_tokens=2), sentence_pair
    ),
    Architecture("m2m_100", _translation("m2m_100", **PAIR), sentence_pair),
    Architecture(
        "wav2vec2",
        made("wav2vec2", transformers.AutoModelForCTC, **_WAVES, feat_extract_norm="layer"),
        _padded_wave,
    ),
    Architecture("hubert", made("hubert", **_WAVES), _wave),
    Architecture("wavlm", made("wavlm", **_WAVES), _wave),
    Architecture("wav2vec2-conformer", made("wav2vec2-conformer", **_WAVES), _wave),
    Architecture(
        "whisper",
        made(
            "whisper",
            _SPEECH,
            **PAIR,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=64,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        _frames(8, 40, said=8),
    ),
    Architecture(
        "speech_to_text",
        made(
            "speech_to_text",
            _SPEECH,
            **PAIR,
            input_feat_per_channel=8,
            conv_channels=16,
            max_source_positions=40,
            max_target_positions=64,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        _frames(40, 8, said=8),
    ),
    Architecture(
        "audio-spectrogram-transformer",
        made(
            "audio-spectrogram-transformer",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            patch_size=4,
            num_mel_bins=16,
            max_length=24,
            time_stride=4,
            frequency_stride=4,
        ),
        lambda seed: {"input_values": normal(2, 24, 16, seed=seed)},
    ),
    Architecture("clip", made("clip", **_TOWERS), captioned),
    Architecture("siglip", made("siglip", **_TOWERS), captioned),
    Architecture(
        "layoutlmv3",
        made(
            "layoutlmv3",
            **TEXT,
            input_size=32,
            patch_size=8,
            coordinate_size=4,
            shape_size=8,
            max_2d_position_embeddings=64,
        ),
        lambda seed: {
            **captioned(seed),
            "bbox": ids(2, 12 * 4, 7, below=60).reshape(2, 12, 4).sort(-1).values,
        },
    ),
    Architecture(
        "llava",
        made(
            "llava",
            transformers.AutoModelForImageTextToText,
            image_token_index=98,
            use_cache=False,
            text_config={**TEXT, "model_type": "llama", "num_key_value_heads": 2, "use_cache": False},
            vision_config={**PATCHES, "model_type": "clip_vision_model"},
        ),
        _with_image_tokens,
    ),
    Architecture(
        "vision-encoder-decoder",
        _caption_writer,
        lambda seed: {
            "pixel_values": normal(2, 3, 32, 32, seed=seed),
            "decoder_input_ids": ids(2, 6, seed),
            "use_cache": False,
        },
    ),
    Architecture(
        "patchtst",
        made(
            "patchtst",
            num_input_channels=3,
            context_length=16,
            patch_length=4,
            patch_stride=4,
            d_model=32,
            num_attention_heads=4,
            ffn_dim=64,
            num_hidden_layers=2,
        ),
        lambda seed: {"past_values": normal(2, 16, 3, seed=seed)},
    ),
    Architecture(
        "time_series_transformer",
        made(
            "time_series_transformer",
            **{**PAIR, "vocab_size": None, "max_position_embeddings": None},
            prediction_length=4,
            context_length=16,
            num_time_features=2,
            lags_sequence=[1, 2, 7],
        ),
        _series,
    ),
)
