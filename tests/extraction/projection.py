"""A small real backbone: a fixed random projection of the pixels of each patch. No weights file."""

import hashlib

import numpy as np
import torch
from PIL import Image

from dlprobe.backbones.base import BackboneCard
from dlprobe.data import Manifest
from dlprobe.data.tiling import RESIZE_RULE
from dlprobe.spec import ModelSpec, Pins

PATCH_PX, WINDOW_PX, WIDTH = 14, 56, 6


class Projection:
    """Embeds a patch as a fixed random projection of its centred pixels."""

    weights = "random:0"
    card = BackboneCard(name="projection", weights="random:0", licence="none", trained_on="nothing")

    def __init__(self, *, scale=1.0, batch_size=4, window_px=WINDOW_PX, width=WIDTH):
        matrix = np.random.RandomState(7).randn(PATCH_PX * PATCH_PX * 3, width) * scale / 24
        self.matrix = torch.from_numpy(matrix.astype(np.float32))
        self.weights_sha256 = hashlib.sha256(self.matrix.numpy().tobytes()).hexdigest()
        self.width, self.patch_px = width, PATCH_PX
        self.pins = Pins(engine="torch", precision="float32", device="cpu", batch_size=batch_size)
        self.spec = ModelSpec(
            backbone="projection:random",
            implementation="projection",
            weights_sha256=self.weights_sha256,
            layers=(),
            norm=False,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            resize_rule=RESIZE_RULE,
            window_px=window_px,
            patch_px=PATCH_PX,
            width=width,
        )

    def __call__(self, windows):
        pixels = torch.from_numpy(np.ascontiguousarray(windows)).float().div(127.5).sub(1.0)
        count, side, grid = pixels.shape[0], pixels.shape[1], pixels.shape[1] // PATCH_PX
        patches = pixels.reshape(count, grid, PATCH_PX, grid, PATCH_PX, 3).transpose(2, 3)
        assert side == self.spec.window_px
        return patches.reshape(count, grid, grid, -1) @ self.matrix


def write_images(folder, sizes, seed=0):
    """Write noise images with masks of blobs, and return their manifest; variants take turns."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, (height, width) in enumerate(sizes):
        variant = ("real", "ae", "sp", "fr")[number % 4]
        name = f"image-{number:03d}.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
        mask = ""
        if variant in {"sp", "fr"}:
            mask = f"mask-{number:03d}.png"
            y, x = rng.integers(0, height // 2), rng.integers(0, width // 2)
            inside = np.zeros((height, width), np.uint8)
            inside[y : y + height // 2, x : x + width // 3] = 255
            Image.fromarray(inside).save(folder / mask)
        records.append(
            {
                "path": name,
                "mask": mask,
                "variant": variant,
                "source_id": f"photo:{number // 4}",
                "split": ("train", "val", "test")[number // 4 % 3],
                "width": width,
                "height": height,
            }
        )
    return Manifest.from_records(records, folder)


#: Sizes that give one window, several, an enlarged image and a wide one.
SIZES = [(60, 60), (112, 112), (56, 170), (30, 44), (80, 60), (112, 56), (61, 75), (170, 112), (58, 57), (56, 56)]
