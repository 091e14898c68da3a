"""Language models with a mixture of experts, and those with a state instead of attention."""

from __future__ import annotations

from typing import Any

import transformers

from architectures import TEXT, Architecture, made, padded, unmasked

_GROUPED = {**TEXT, "num_hidden_layers": 1, "num_key_value_heads": 2, "use_cache": False}
_TWO_LAYERS = {**_GROUPED, "num_hidden_layers": 2}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}


def _model(kind: str, **sizes: Any) -> Any:
    return made(kind, transformers.AutoModelForCausalLM, **sizes)


TABLE = (
    Architecture("mixtral", _model("mixtral", **_GROUPED, num_local_experts=4), padded()),
    Architecture(
        "qwen2_moe",
        _model("qwen2_moe", **_GROUPED, **_EXPERTS, shared_expert_intermediate_size=32),
        padded(),
    ),
    Architecture("granitemoe", _model("granitemoe", **_GROUPED, num_local_experts=4), padded()),
    Architecture(
        "gpt_oss", _model("gpt_oss", **_GROUPED, num_local_experts=4, head_dim=8, sliding_window=4), padded()
    ),
    # A token whose experts are chosen by a hair goes to others, and is off by all that those add. Here that
    # is two and a half times what they would add elsewhere.
    Architecture(
        "deepseek_v3",
        _model(
            "deepseek_v3",
            **{**_TWO_LAYERS, "num_key_value_heads": 4},
            **_LATENT,
            n_routed_experts=4,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
            n_shared_experts=1,
        ),
        padded(),
        static=20.0,
        dynamic=25.0,
    ),
    Architecture(
        "llama4",
        _model(
            "llama4_text",
            **_TWO_LAYERS,
            num_local_experts=4,
            head_dim=8,
            intermediate_size_mlp=64,
            moe_layers=[1],
        ),
        padded(),
    ),
    Architecture("mamba", _model("mamba", **TEXT, state_size=4, use_cache=False), unmasked(length=6)),
    Architecture(
        "mamba2",
        _model(
            "mamba2", **TEXT, state_size=8, num_heads=8, head_dim=8, n_groups=2, chunk_size=4, use_cache=False
        ),
        unmasked(),
    ),
    Architecture(
        "rwkv",
        _model("rwkv", **TEXT, attention_hidden_size=32, context_length=64, rescale_every=0, use_cache=False),
        unmasked(length=5),
    ),
    Architecture(
        "recurrent_gemma",
        _model(
            "recurrent_gemma",
            **{**_TWO_LAYERS, "num_key_value_heads": 1},
            lru_width=32,
            attention_window_size=8,
        ),
        padded(length=6),
    ),
    # The state is a sum of products of four tensors. Most are near 0 and a few are large, which suits no
    # scale that is the same everywhere.
    Architecture(
        "jamba",
        _model(
            "jamba",
            **_TWO_LAYERS,
            num_experts=2,
            mamba_d_state=4,
            attn_layer_offset=1,
            attn_layer_period=2,
            expert_layer_offset=1,
            expert_layer_period=2,
            use_mamba_kernels=False,
        ),
        padded(),
        static=17.0,
        dynamic=28.0,
    ),
    Architecture("lfm2", _model("lfm2", **_TWO_LAYERS, layer_types=["conv", "full_attention"]), padded()),
)
