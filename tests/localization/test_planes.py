"""Maps that do not fit in memory are the same maps."""

import gc
import os
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from dlprobe.data.tiling import tile
from dlprobe.localization import Scratch, SlidingSettings, planes, score_maps
from dlprobe.localization.canvas import LogitCanvas
from dlprobe.localization.planes import RowStore, resize_rows, strips

FIELDS = ("scores", "disagreement", "logits", "n_windows", "working_scores")


@pytest.mark.parametrize("size", [(700, 260), (260, 700), (100, 300), (300, 100), (112, 112)])
@pytest.mark.parametrize("n_logits", [1, 3])
def test_maps_on_disk_equal_maps_in_memory(kit, tmp_path, size, n_logits):
    backbone = kit.Backbone(window_px=112)
    probe, image = kit.probe(backbone, n_logits), kit.photograph(*size)
    settings = SlidingSettings(stride_px=28)
    ((_, memory),) = score_maps([(0, image)], backbone, probe, settings)
    ((_, disk),) = score_maps([(0, image)], backbone, probe, settings, scratch=Scratch(memory_bytes=0, folder=tmp_path))
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(disk, name), getattr(memory, name))
    assert isinstance(disk.logits, np.memmap)
    assert not isinstance(memory.logits, np.memmap)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")  # noqa: PTH112
def test_files_go_with_the_arrays(kit, tmp_path):
    def opened():
        with open("/proc/self/maps", encoding="utf-8") as maps:  # noqa: PTH123
            return sum(str(tmp_path) in line for line in maps)

    backbone = kit.Backbone(window_px=112)
    scratch = Scratch(memory_bytes=0, folder=tmp_path)
    settings = SlidingSettings(stride_px=56)
    items = [(0, kit.photograph(300, 200))]
    ((_, found),) = score_maps(items, backbone, kit.probe(backbone, 1), settings, scratch=scratch)
    assert opened() >= 4
    del found
    gc.collect()
    assert opened() == 0


@pytest.mark.parametrize("blend", ["none", "hann"])
@pytest.mark.parametrize("size", [(500, 190), (190, 500)])
def test_a_band_equals_a_canvas_of_the_whole_image(size, blend):
    boxes = tile(*size, 112, 28, "cover")
    logits = torch.as_tensor(np.random.default_rng(0).normal(0, 3, (len(boxes), 8, 8, 3)).astype(np.float32))
    found = []
    for band_px in (112, 130, None, max(size)):
        settings = SlidingSettings(stride_px=28, blend=blend)
        canvas = LogitCanvas(
            size,
            size,
            3,
            window_px=112,
            settings=settings,
            device=torch.device("cpu"),
            scratch=Scratch(),
            band_px=band_px,
        )
        order = sorted(range(len(boxes)), key=lambda i: canvas.sort_key(boxes[i]))
        canvas.feed([boxes[i] for i in order], logits[order])
        found.append(canvas.maps())
    for one, other in pairwise(found):
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("size", [(301, 57), (40, 57), (200, 300)])
def test_resizing_in_strips_equals_pillow_on_the_whole(monkeypatch, size):
    maps = np.random.default_rng(1).random((2, 300, 120), np.float32)
    monkeypatch.setattr(planes, "STRIP_PX", 2000)
    store = RowStore((2, *size), np.float32)
    resize_rows(maps, size, store)
    for i in range(2):
        whole = Image.fromarray(maps[i]).resize(size[::-1], Image.Resampling.BICUBIC)
        np.testing.assert_allclose(store.array()[i], np.clip(np.asarray(whole), 0, 1), atol=1e-6)


@pytest.mark.parametrize("shape", [(70, 30), (30, 70, 2)])
def test_strips_are_the_array(monkeypatch, shape):
    monkeypatch.setattr(planes, "STRIP_PX", 200)
    array = np.arange(np.prod(shape)).reshape(shape)
    axis = int(shape[1] > shape[0])
    pieces = list(strips(array))
    assert len(pieces) > 5
    np.testing.assert_array_equal(np.concatenate([piece for _, piece in pieces], axis=axis), array)
    assert [part.start for part, _ in pieces][1:] == [part.stop for part, _ in pieces][:-1]


PEAK = """
import resource, sys
import numpy as np
sys.path.insert(0, {tests!r})
from conftest import PatchMeans, make_probe
from dlprobe.localization import score_map
backbone = PatchMeans(batch_size=8)
probe = make_probe(backbone, 3)
score_map(np.zeros((600, 600, 3), np.uint8), backbone, probe)  # libraries and model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image = np.random.default_rng(0).integers(0, 256, {size} + (3,), np.uint8)
found = score_map(image, backbone, probe, stride_px=252)
assert found.scores.shape == image.shape
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("size", [(10_000, 10_000), (5_000, 20_000), (200_000, 500)])
def test_a_hundred_megapixels_with_three_logits_take_two_gigabytes(size):
    code = PEAK.format(tests=os.path.dirname(__file__), size=size)  # noqa: PTH120
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 300e6 < int(run.stdout) < 2e9


@pytest.mark.gpu
@pytest.mark.parametrize("blend", ["none", "hann"])
def test_a_canvas_on_a_gpu_gives_the_maps_of_one_on_the_cpu(blend):
    size = (500, 190)
    boxes = tile(*size, 112, 28, "cover")
    logits = torch.as_tensor(np.random.default_rng(0).normal(0, 3, (len(boxes), 8, 8, 3)).astype(np.float32))
    found = []
    for device in ("cpu", "cuda"):
        canvas = LogitCanvas(
            size,
            size,
            3,
            window_px=112,
            settings=SlidingSettings(stride_px=28, blend=blend),
            device=torch.device(device),
            scratch=Scratch(),
        )
        canvas.feed(boxes, logits)
        found.append(canvas.maps())
    for name in FIELDS:
        np.testing.assert_allclose(getattr(found[0], name), getattr(found[1], name), atol=1e-5)
