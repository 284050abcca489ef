"""Configurations of the DINO models that Meta publishes for transformers, so that none needs the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlprobe.backbones.catalogue import LVD_142M, LVD_1689M, SAT_493M

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SATELLITE = ((0.430, 0.411, 0.296), (0.213, 0.156, 0.143))

#: Fields of a configuration that change an embedding; the others are about training or saving.
ESSENTIAL_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "mlp_ratio",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "num_register_tokens",
    "qkv_bias",
    "query_bias",
    "key_bias",
    "value_bias",
    "proj_bias",
    "mlp_bias",
    "use_swiglu_ffn",
    "use_gated_mlp",
    "rope_theta",
)
MODEL_TYPES = ("dinov2", "dinov2_with_registers", "dinov3_vit")


@dataclass(frozen=True, slots=True, kw_only=True)
class HfModel:
    """What is known of a model before its weights: configuration, normalisation, licence and training data."""

    fields: dict[str, Any]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    licence: str = ""
    trained_on: str = ""


def known_models() -> dict[str, HfModel]:
    """Return Meta's models by repository name."""
    models = {}
    for size, (width, depth, heads) in _DINOV2.items():
        swiglu = {"use_swiglu_ffn": size == "giant"}
        fields: dict[str, Any] = {
            **_sizes(width, depth, heads),
            "image_size": 518,
            "patch_size": 14,
            "mlp_ratio": 4,
            **swiglu,
        }
        plain = {"model_type": "dinov2", **fields}
        registers = {"model_type": "dinov2_with_registers", **fields, "num_register_tokens": 4}
        for name, chosen in ((f"dinov2-{size}", plain), (f"dinov2-with-registers-{size}", registers)):
            models[f"facebook/{name}"] = HfModel(fields=chosen, licence="apache-2.0", trained_on=LVD_142M)
    for size, (width, depth, heads, hidden) in _DINOV3.items():
        gated = size in {"vits16plus", "vith16plus", "vit7b16"}
        fields = {
            "model_type": "dinov3_vit",
            **_sizes(width, depth, heads),
            "intermediate_size": hidden,
            "patch_size": 16,
            "num_register_tokens": 4,
            "use_gated_mlp": gated,
            "hidden_act": "silu" if gated else "gelu",
            "query_bias": size != "vit7b16",
            "value_bias": size != "vit7b16",
        }
        web = HfModel(fields=fields, licence="dinov3-license", trained_on=LVD_1689M)
        models[f"facebook/dinov3-{size}-pretrain-lvd1689m"] = web
        if size in {"vitl16", "vit7b16"}:
            models[f"facebook/dinov3-{size}-pretrain-sat493m"] = HfModel(
                fields=fields, mean=_SATELLITE[0], std=_SATELLITE[1], licence="dinov3-license", trained_on=SAT_493M
            )
    return models


_DINOV2 = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16), "giant": (1536, 40, 24)}
_DINOV3 = {
    "vits16": (384, 12, 6, 1536),
    "vits16plus": (384, 12, 6, 1536),
    "vitb16": (768, 12, 12, 3072),
    "vitl16": (1024, 24, 16, 4096),
    "vith16plus": (1280, 32, 20, 5120),
    "vit7b16": (4096, 40, 32, 8192),
}


def _sizes(width: int, depth: int, heads: int) -> dict[str, int]:
    return {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads}
