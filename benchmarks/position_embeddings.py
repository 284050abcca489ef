"""How far implementations of the same weights are apart, because each brings positions to the window in its own way.

    python benchmarks/position_embeddings.py [--model vit_small_patch14_dinov2] [--windows 2]

DINOv2 has a table of positions for 37x37 patches; a window of 504 px has 36x36. Every arm runs the same network of timm
with random weights (`random:0`), and differs from the first in nothing but the table. Differences are in the Euclidean
norm, relative to the first arm. White tables are the worst case; smooth ones, made of few low frequencies, are nearer
to what training leaves. DINOv3 computes its positions; there, the periods rounded to bfloat16, as Meta's files hold
them, stand against those computed in float32.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from timm.layers import resample_abs_pos_embed

from dlprobe.backbones import load_backbone

NATIVE = 37


def timm_positions(table: torch.Tensor, grid: int, prefix: int) -> torch.Tensor:
    """Bicubic with antialiasing, to the size."""
    return resample_abs_pos_embed(table, new_size=[grid, grid], old_size=[NATIVE, NATIVE], num_prefix_tokens=prefix)


def _interpolated(table: torch.Tensor, prefix: int, **how: object) -> torch.Tensor:
    square = table[:, prefix:].reshape(1, NATIVE, NATIVE, -1).permute(0, 3, 1, 2)
    moved = F.interpolate(square, mode="bicubic", **how)
    return torch.cat([table[:, :prefix], moved.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def transformers_positions(table: torch.Tensor, grid: int, prefix: int) -> torch.Tensor:
    """`Dinov2Embeddings.interpolate_pos_encoding`: bicubic, to the size."""
    return _interpolated(table, prefix, size=(grid, grid), align_corners=False)


def repository_positions(table: torch.Tensor, grid: int, prefix: int) -> torch.Tensor:
    """`interpolate_pos_encoding` of facebookresearch/dinov2 without registers: by a factor with 0.1 patch to spare."""
    factor = (grid + 0.1) / NATIVE
    return _interpolated(table, prefix, scale_factor=(factor, factor))


def antialiased_positions(table: torch.Tensor, grid: int, prefix: int) -> torch.Tensor:
    """Bicubic with antialiasing, to the size: both others do the same for the networks with registers."""
    return _interpolated(table, prefix, size=(grid, grid), align_corners=False, antialias=True)


ARMS = {
    "timm": timm_positions,
    "transformers Dinov2WithRegisters": antialiased_positions,
    "DINOv2 repository, with registers": antialiased_positions,
    "transformers Dinov2": transformers_positions,
    "DINOv2 repository, without registers": repository_positions,
}


def tables(width: int, tokens: int) -> dict[str, torch.Tensor]:
    """Return a white and a smooth table of positions, of the size that trained ones have."""
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(1, tokens, width, generator=generator)
    axis = (torch.arange(NATIVE) + 0.5) / NATIVE
    waves = torch.stack([torch.cos(math.pi * k * axis) for k in range(6)])
    planes = torch.einsum("ar,bc->abrc", waves, waves).reshape(36, -1)
    smooth = white.clone()
    smooth[0, tokens - NATIVE**2 :] = (torch.randn(width, 36, generator=generator) @ planes).T
    return {name: 0.5 * table / table.std() for name, table in (("white", white), ("smooth", smooth))}


def relative(left: torch.Tensor, right: torch.Tensor) -> float:
    """Return the distance of two tensors relative to the second."""
    return float((left - right).norm() / right.norm())


def compare_tables(model: str, windows: int) -> None:
    """Print the distance of positions and of embeddings from timm's."""
    backbone = load_backbone(f"timm:{model}", weights="random:0", device="cpu", window_px=504)
    network, grid = backbone.network, backbone.spec.grid
    prefix = 0 if network.no_embed_class else network.num_prefix_tokens
    batch = np.random.default_rng(0).integers(0, 256, (windows, 504, 504, 3), dtype=np.uint8)
    for name, table in tables(network.embed_dim, prefix + NATIVE**2).items():
        reference_table = timm_positions(table, grid, prefix)
        network.pos_embed.data = reference_table
        reference = backbone(batch)
        for arm, resample in ARMS.items():
            moved = resample(table, grid, prefix)
            network.pos_embed.data = moved
            print(
                f"{name:8} {arm:38} {relative(moved, reference_table):.1e} {relative(backbone(batch), reference):.1e}"
            )


def compare_periods(windows: int) -> None:
    """Print the distance of DINOv3's embeddings when its periods are rounded."""
    backbone = load_backbone("dinov3-s", weights="random:0", device="cpu")
    side = backbone.spec.window_px
    batch = np.random.default_rng(0).integers(0, 256, (windows, side, side, 3), dtype=np.uint8)
    reference, periods = backbone(batch), backbone.network.rope.periods
    rounded = periods.to(torch.bfloat16).float()
    distance = relative(rounded, periods)
    periods.copy_(rounded)
    print(f"DINOv3   periods in bfloat16{'':19} {distance:.1e} {relative(backbone(batch), reference):.1e}")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--windows", type=int, default=2)
    arguments = parser.parse_args()
    print(f"{'table':8} {'implementation':38} positions, embeddings: relative distance from timm")
    compare_tables(arguments.model, arguments.windows)
    compare_periods(arguments.windows)


if __name__ == "__main__":
    main()
