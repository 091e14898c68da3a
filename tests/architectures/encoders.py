"""Encoders of text."""

from __future__ import annotations

import transformers

from architectures import TEXT, Architecture, ids, made, mask, padded, unmasked

TABLE = (
    Architecture(
        "bert", made("bert", **TEXT), padded(), free={"input_ids": (0, 1), "attention_mask": (0, 1)}
    ),
    Architecture("bert, attention in single steps", made("bert", attention="eager", **TEXT), padded()),
    Architecture(
        "bert, strict", made("bert", transformers.AutoModelForMaskedLM, **TEXT), padded(), strict=True
    ),
    Architecture("roberta", made("roberta", **TEXT), padded()),
    Architecture(
        "distilbert",
        made(
            "distilbert",
            transformers.AutoModelForSequenceClassification,
            vocab_size=99,
            dim=32,
            n_layers=2,
            n_heads=4,
            hidden_dim=64,
            max_position_embeddings=64,
        ),
        padded(),
    ),
    Architecture("albert", made("albert", **TEXT, embedding_size=16), padded()),
    Architecture("electra", made("electra", transformers.AutoModelForPreTraining, **TEXT), padded()),
    # One layer: it has no normalization, so that scores grow with depth, and attention picks single tokens.
    Architecture(
        "mobilebert",
        made(
            "mobilebert",
            **{**TEXT, "num_hidden_layers": 1},
            embedding_size=16,
            intra_bottleneck_size=16,
            true_hidden_size=16,
        ),
        padded(),
    ),
    Architecture(
        "deberta",
        made(
            "deberta",
            **TEXT,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
        ),
        padded(),
    ),
    Architecture(
        "deberta-v2",
        made(
            "deberta-v2",
            **TEXT,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_biased_input=False,
        ),
        padded(),
    ),
    Architecture("mpnet", made("mpnet", **TEXT), padded()),
    Architecture("roformer", made("roformer", **TEXT), padded()),
    Architecture("squeezebert", made("squeezebert", **TEXT, embedding_size=32), padded()),
    Architecture("fnet", made("fnet", **TEXT), unmasked()),
    Architecture("convbert", made("convbert", **TEXT), padded()),
    Architecture("nystromformer", made("nystromformer", **TEXT), padded()),
    Architecture("big_bird", made("big_bird", **TEXT, attention_type="original_full"), padded()),
    Architecture(
        "modernbert",
        made(
            "modernbert",
            **TEXT,
            local_attention=4,
            global_attn_every_n_layers=2,
            cls_token_id=1,
            sep_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
        ),
        padded(),
    ),
    Architecture(
        "esm",
        made("esm", **TEXT, mask_token_id=98, position_embedding_type="rotary"),
        padded(),
    ),
    Architecture("canine", made("canine", **TEXT), padded()),
    Architecture(
        "reformer",
        made(
            "reformer",
            **TEXT,
            attn_layers=["local", "local"],
            axial_pos_embds=False,
            use_cache=False,
            attention_head_size=8,
            feed_forward_size=64,
            local_attn_chunk_length=4,
        ),
        padded(),
    ),
    Architecture("xlm", made("xlm", vocab_size=99, emb_dim=32, n_layers=2, n_heads=4), padded()),
    Architecture(
        "perceiver",
        made(
            "perceiver",
            transformers.AutoModelForMaskedLM,
            **TEXT,
            d_model=32,
            num_latents=8,
            d_latents=32,
            num_blocks=1,
            num_self_attends_per_block=2,
            num_self_attention_heads=4,
            num_cross_attention_heads=4,
        ),
        lambda seed: {"inputs": ids(2, 12, seed), "attention_mask": mask(2, 12)},
    ),
)
