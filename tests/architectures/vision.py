"""Models of images and of films."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from architectures import PATCHES, Architecture, Inputs, image, made, normal

#: Four stages, as convolutional and hierarchical models have them.
_STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_HEADS = {"num_attention_heads": [1, 2, 3, 4]}
_WINDOWS = {
    "image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [1, 2],
    "num_heads": [2, 4],
}  # fmt: skip


def _classifier(kind: str, **sizes: Any) -> Any:
    """With as many classes as make a measurement; two would be four numbers in all."""
    return made(kind, transformers.AutoModelForImageClassification, **sizes, num_labels=32)


def _film(seed: int) -> Inputs:
    return {"pixel_values": normal(2, 4, 3, 32, 32, seed=seed)}


def _partly_padded(seed: int) -> Inputs:
    pixels = torch.ones(2, 64, 64, dtype=torch.int64)
    pixels[1, :, 40:] = 0
    return {**image(64)(seed), "pixel_mask": pixels}


def _backbone(*stages: str) -> Any:
    return transformers.ResNetConfig(embedding_size=8, **_STAGES, layer_type="basic", out_features=[*stages])


def _detector(model: Any, config: Any, *stages: str, **sizes: Any) -> Any:
    """Maker of a DETR behind a ResNet."""
    return lambda: model(
        config(
            use_timm_backbone=False, backbone=None, backbone_config=_backbone(*stages), d_model=32,
            encoder_layers=1, decoder_layers=1, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=64, decoder_ffn_dim=64, num_queries=5, **sizes,
        )
    )  # fmt: skip


def _upernet() -> Any:
    stages = [f"stage{number}" for number in (1, 2, 3, 4)]
    backbone = transformers.ConvNextConfig(**_STAGES, out_features=stages, layer_scale_init_value=1.0)
    config = transformers.UperNetConfig(
        backbone_config=backbone,
        hidden_size=16,
        auxiliary_channels=8,
        auxiliary_in_channels=24,
        pool_scales=[1, 2],
    )
    return transformers.UperNetForSemanticSegmentation(config)


def _depth() -> Any:
    backbone = transformers.Dinov2Config(**PATCHES, out_indices=[1, 2], reshape_hidden_states=False)
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=8, reassemble_hidden_size=32, neck_hidden_sizes=[8, 16],
        reassemble_factors=[2, 1], fusion_hidden_size=16, head_hidden_size=8,
    )  # fmt: skip
    return transformers.DepthAnythingForDepthEstimation(config)


TABLE = (
    Architecture("vit", made("vit", **PATCHES), image(), free={"pixel_values": (0,)}),
    Architecture("beit", made("beit", **PATCHES, use_relative_position_bias=True), image()),
    Architecture("dinov3", made("dinov3_vit", **PATCHES, num_register_tokens=2), image()),
    Architecture("videomae", made("videomae", **PATCHES, num_frames=4), _film),
    Architecture("swin", made("swin", **_WINDOWS), image()),
    Architecture("convnext", _classifier("convnext", **_STAGES, layer_scale_init_value=1.0), image()),
    Architecture(
        "resnet",
        _classifier("resnet", embedding_size=8, **_STAGES, layer_type="basic"),
        image(),
        free={"pixel_values": (0,)},
    ),
    Architecture(
        "regnet, strict",
        _classifier("regnet", embedding_size=8, **_STAGES, groups_width=8),
        image(),
        strict=True,
    ),
    Architecture("mobilenet_v1", _classifier("mobilenet_v1", depth_multiplier=0.25, min_depth=8), image()),
    # Depth-wise convolutions with few inputs, 35 layers deep: noise has nothing to average out over.
    Architecture(
        "mobilenet_v2",
        _classifier("mobilenet_v2", depth_multiplier=0.25, min_depth=8),
        image(),
        static=18.0,
        dynamic=20.0,  # its pointwise convolutions are quantized
    ),
    Architecture("poolformer", _classifier("poolformer", **_STAGES, layer_scale_init_value=1.0), image(64)),
    Architecture(
        "segformer",
        made(
            "segformer",
            transformers.AutoModelForSemanticSegmentation,
            **_STAGES,
            **_HEADS,
            decoder_hidden_size=32,
        ),
        image(64),
    ),
    Architecture("upernet", _upernet, image(64)),
    # A single map comes out of a chain of convolutions without normalizations; 21.4 dB were measured.
    Architecture("depth_anything", _depth, image(), static=20.0, dynamic=27.0),
    Architecture(
        "detr",
        _detector(transformers.DetrModel, transformers.DetrConfig, "stage4"),
        _partly_padded,
    ),
    Architecture(
        "deformable_detr",
        _detector(
            transformers.DeformableDetrModel,
            transformers.DeformableDetrConfig,
            "stage3",
            "stage4",
            num_feature_levels=2,
        ),
        _partly_padded,
    ),
)
