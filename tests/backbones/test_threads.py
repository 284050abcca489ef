"""torch leaves the cores to an engine that has threads of its own."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from dlprobe.backbones import load_backbone
from dlprobe.backbones.engines.threads import threads_beside
from dlprobe.spec import Pins

PINS = Pins(engine="torch", precision="float32", device="cpu", batch_size=2)


@pytest.fixture
def three():
    """Give torch three threads for a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("engine", "inside"), [("torch", 3), ("openvino", 1)])
@pytest.mark.usefixtures("three")
def test_one_thread_beside_openvino_and_all_of_them_afterwards(engine, inside):
    def fails():
        with threads_beside(replace(PINS, engine=engine)):
            assert torch.get_num_threads() == inside
            raise RuntimeError("the engine")

    with pytest.raises(RuntimeError, match="the engine"):
        fails()
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three")
def test_callers_that_overlap_leave_what_was_there_before_them_to_all():
    pins, here, there = replace(PINS, engine="openvino"), threading.Event(), threading.Event()
    found = {}

    def second():
        here.wait()
        with threads_beside(pins):
            there.set()
            here.clear()
            here.wait()
            found["inside"] = torch.get_num_threads()
        found["after"] = torch.get_num_threads()

    other = threading.Thread(target=second)
    other.start()
    with threads_beside(pins):
        here.set()
        there.wait()
    assert torch.get_num_threads() == 3
    here.set()
    other.join()
    assert found == {"inside": 1, "after": 3}
    fresh = ThreadPoolExecutor(1).submit(torch.get_num_threads).result()
    assert (torch.get_num_threads(), fresh) == (3, 3)


@pytest.mark.usefixtures("three")
def test_what_is_beside_the_engine_has_one_thread(monkeypatch):
    pytest.importorskip("openvino")
    network = load_backbone("timm:vit_nano_patch14_dinov2", weights="random:0", window_px=56, engine="openvino")
    seen = []
    plain = network.normalise

    def normalise(windows):
        seen.append(torch.get_num_threads())
        return plain(windows)

    monkeypatch.setattr(network, "normalise", normalise)
    network(np.zeros((2, 56, 56, 3), np.uint8))
    assert seen == [1]
    assert torch.get_num_threads() == 3


def test_pixels_are_normalised_in_float32_one_step_after_the_other():
    network = load_backbone("timm:vit_nano_patch14_dinov2", weights="random:0", window_px=56)
    windows = np.random.default_rng(0).integers(0, 256, (2, 56, 56, 3), np.uint8)
    mean, std = (np.array(each, np.float32) for each in (network.spec.mean, network.spec.std))
    expected = ((windows.astype(np.float32) / np.float32(255) - mean) / std).transpose(0, 3, 1, 2)
    found = network.normalise(torch.from_numpy(windows))
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.is_contiguous()
