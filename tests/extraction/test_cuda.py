"""On a CUDA device: the embeddings of the CPU, whatever is copied when, and a batch size that is found."""

import pytest
import torch

from dlprobe.backbones import load_backbone
from dlprobe.backbones.engines.copying import to_device, to_host
from dlprobe.cache import open_cache
from dlprobe.extraction import extract

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
SETTINGS = {"stride_px": 40, "block_windows": 4}


def load(**options):
    return load_backbone("timm:vit_tiny_patch16_224", weights="random:0", window_px=64, **options)


def test_copies_arrive_whole():
    sent = [torch.randint(0, 255, (64, 56, 56, 3), dtype=torch.uint8) for _ in range(8)]
    waits = [to_host([to_device(tensor, torch.device("cuda")) * 2, None]) for tensor in sent]
    for tensor, wait in zip(sent, waits, strict=True):
        assert torch.equal(wait()[0], tensor * 2)


def test_float32_is_the_cpu_s_and_bfloat16_near(manifest, tmp_path):
    found = {}
    for name, options in {
        "cpu": {"device": "cpu"},
        "cuda": {"device": "cuda", "precision": "float32", "batch_size": 3},
        "bfloat16": {"device": "cuda"},
    }.items():
        extract(manifest, load(**options), tmp_path / name, dtype="float32", **SETTINGS)
        cache = open_cache(tmp_path / name)
        found[name] = torch.from_numpy(cache.read(range(len(cache.windows))).embeddings.copy()).double()
        assert cache.verify() == []
    assert (found["cuda"] - found["cpu"]).norm() < 1e-3 * found["cpu"].norm()
    assert (found["bfloat16"] - found["cpu"]).norm() < 3e-2 * found["cpu"].norm()


def test_the_batch_size_is_found_and_used_again(manifest, tmp_path):
    backbone = load(device="cuda")
    assert backbone.automatic_batch
    extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    assert open_cache(tmp_path / "cache").pins.batch_size >= 8
    assert extract(manifest, backbone, tmp_path / "cache", **SETTINGS).done == 0
