"""Language models that read from left to right."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn
from transformers.integrations.executorch import TorchExportableModuleWithStaticCache

from architectures import TEXT, Architecture, Inputs, ids, made, padded, unmasked

_SENTENCES = {"input_ids": (0, 1), "attention_mask": (0, 1)}
#: What most of them call their sizes; two heads read the same keys and values.
_GROUPED = {**TEXT, "num_hidden_layers": 1, "num_key_value_heads": 2, "use_cache": False}
_TWO_LAYERS = {**_GROUPED, "num_hidden_layers": 2}
#: What GPT-2 and those after it call them.
_GPT = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}


def _model(kind: str, **sizes: Any) -> Any:
    return made(kind, transformers.AutoModelForCausalLM, **sizes)


def _with_cache() -> nn.Module:
    """Llama with a cache of keys and values in buffers that it writes to, one token a call."""
    model = _model("llama", **{**_GROUPED, "use_cache": True})()
    model.generation_config.use_cache = True
    model.generation_config.cache_implementation = "static"
    model.generation_config.cache_config = {"batch_size": 1, "max_cache_len": 16, "device": "cpu"}
    return TorchExportableModuleWithStaticCache(model, batch_size=1, max_cache_len=16, device="cpu")


def _next_token(seed: int) -> Inputs:
    return {"input_ids": ids(1, 1, seed), "cache_position": torch.tensor([seed])}


TABLE = (
    Architecture("gpt2", _model("gpt2", **_GPT), padded(left=True)),
    Architecture(
        "gpt_neo",
        _model(
            "gpt_neo",
            vocab_size=99,
            hidden_size=32,
            num_layers=2,
            num_heads=4,
            window_size=4,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
            use_cache=False,
        ),
        padded(),
    ),
    Architecture("gpt_neox", _model("gpt_neox", **TEXT, use_cache=False), padded()),
    Architecture("gptj", _model("gptj", **_GPT, rotary_dim=4), padded()),
    Architecture("codegen", _model("codegen", **_GPT, rotary_dim=4), padded()),
    Architecture("gpt_bigcode", _model("gpt_bigcode", **_GPT), padded()),
    Architecture("opt", _model("opt", **TEXT, ffn_dim=64, word_embed_proj_dim=16, use_cache=False), padded()),
    Architecture(
        "xglm",
        _model(
            "xglm",
            vocab_size=99,
            d_model=32,
            ffn_dim=64,
            num_layers=2,
            attention_heads=4,
            max_position_embeddings=64,
            use_cache=False,
        ),
        padded(),
    ),
    Architecture(
        "bloom",
        _model("bloom", vocab_size=99, hidden_size=32, n_layer=2, n_head=4, use_cache=False),
        padded(left=True),
    ),
    Architecture(
        "mpt",
        _model("mpt", vocab_size=99, d_model=32, n_heads=4, n_layers=2, max_seq_len=64, use_cache=False),
        padded(),
    ),
    Architecture("falcon", _model("falcon", **TEXT, use_cache=False), padded()),
    Architecture("falcon, ALiBi", _model("falcon", **TEXT, use_cache=False, alibi=True), padded()),
    Architecture("llama", _model("llama", **_TWO_LAYERS), padded(left=True), free=_SENTENCES),
    Architecture("llama, static cache", _with_cache, _next_token),
    Architecture("mistral", _model("mistral", **_GROUPED, sliding_window=4), padded()),
    Architecture("qwen2", _model("qwen2", **_GROUPED, tie_word_embeddings=True), padded()),
    Architecture("qwen3, strict", _model("qwen3", **_GROUPED, head_dim=8), padded(), strict=True),
    Architecture(
        "gemma2",
        _model("gemma2", **_TWO_LAYERS, head_dim=8, sliding_window=4, query_pre_attn_scalar=8),
        padded(),
    ),
    Architecture(
        "gemma3",
        _model(
            "gemma3_text",
            **_TWO_LAYERS,
            head_dim=8,
            sliding_window=4,
            query_pre_attn_scalar=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        padded(),
    ),
    Architecture("phi", _model("phi", **TEXT, use_cache=False), padded()),
    Architecture("phi3", _model("phi3", **_GROUPED, sliding_window=4), padded()),
    Architecture("olmo2", _model("olmo2", **_GROUPED), padded()),
    Architecture("cohere", _model("cohere", **_GROUPED), unmasked()),
    Architecture("granite", _model("granite", **_GROUPED), unmasked(length=16)),
    Architecture("glm", _model("glm", **_GROUPED, head_dim=8), padded()),
    Architecture("ctrl", _model("ctrl", **_GPT, dff=64), padded()),
)
