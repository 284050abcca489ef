"""On a CUDA device: the embeddings of the CPU, whatever is copied when, and a batch size that is found.

``pytest -m gpu`` runs it all where there is a device; what can also be asked of the CPU is asked of it every time, so
that no test is wrong in itself.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from dlprobe.backbones import load_backbone
from dlprobe.backbones.engines.batching import find_batch_size, release_memory
from dlprobe.backbones.engines.copying import to_device, to_host
from dlprobe.cache import open_cache
from dlprobe.extraction import RayRunner, estimate, extract, plan, recheck, repair
from dlprobe.extraction.embedding import encode, moments, run_backbone, start_batch
from dlprobe.extraction.estimating import windows_per_s

SETTINGS = {"stride_px": 40, "block_windows": 4}
SIDE = 64


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


def load(device, *, window_px=SIDE, **options):
    name = options.pop("name", "timm:vit_tiny_patch16_224")
    return load_backbone(name, **{"weights": "random:0", "device": device, "window_px": window_px, **options})


def noise(count, seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def apart(found, exact):
    found, exact = (torch.as_tensor(part).double() for part in (found, exact))
    return float((found - exact).norm() / exact.norm())


def test_copies_arrive_whole_though_their_memory_is_used_again(device):
    for seed in range(20):
        torch.manual_seed(seed)
        sent = [torch.randint(0, 255, (32, 56, 56, 3), dtype=torch.uint8) for _ in range(6)]
        waits = []
        for tensor in sent:
            if device == "cuda":
                torch.cuda._sleep(2_000_000)  # the device is behind: what is given back early is overwritten
            moved = to_device(tensor, torch.empty(0, device=device).device)
            waits.append(to_host([moved * 2, None, moved.float().add_(0.5)]))
            del moved
        for tensor, wait in zip(sent, waits, strict=True):
            doubled, nothing, floats = wait()
            assert torch.equal(doubled, tensor * 2)
            assert nothing is None
            assert torch.equal(floats, tensor.float() + 0.5)
            assert {doubled.device.type, floats.device.type} == {"cpu"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_what_is_stored_of_a_batch_is_what_the_host_would_store(device, dtype):
    backbone, windows = load(device, batch_size=6), [noise(6, seed) for seed in range(4)]
    finish = [start_batch(backbone, batch, dtype, cls=True) for batch in windows]  # all at work at once
    for batch, wait in zip(windows, finish, strict=True):
        found = wait()
        tokens, cls = run_backbone(backbone, batch, cls=True)
        stored, scale, peak = encode(torch.from_numpy(tokens), dtype)
        np.testing.assert_array_equal(found.arrays["cls"], cls)
        if scale is None:
            np.testing.assert_array_equal(found.arrays["embeddings"], stored)
        else:  # CUDA multiplies by the reciprocal of a number that it is to divide by
            np.testing.assert_allclose(found.arrays["scale"], scale, rtol=3e-7)
            assert np.abs(found.arrays["embeddings"].astype(int) - stored.numpy()).max() <= 1
        np.testing.assert_array_equal(found.peak, np.maximum(peak.numpy(), np.abs(cls)))
        if device == "cuda":
            sums = moments(found.arrays["embeddings"], found.arrays.get("scale"))
            np.testing.assert_allclose(found.arrays["moments"], sums, rtol=1e-6, atol=1e-5)


@pytest.mark.gpu
def test_float32_is_the_cpu_s_and_bfloat16_near(manifest, tmp_path):
    found = {}
    for name, options in {
        "cpu": {"device": "cpu"},
        "cuda": {"device": "cuda", "precision": "float32", "batch_size": 3},
        "bfloat16": {"device": "cuda"},
        "float16": {"device": "cuda", "precision": "float16"},
    }.items():
        extract(manifest, load(**options), tmp_path / name, dtype="float32", **SETTINGS)
        cache = open_cache(tmp_path / name)
        found[name] = cache.read(range(len(cache.windows))).embeddings.copy()
        assert cache.verify() == []
    assert apart(found["cuda"], found["cpu"]) < 1e-3
    assert apart(found["bfloat16"], found["cpu"]) < 3e-2
    assert apart(found["float16"], found["cpu"]) < 3e-2


@pytest.mark.gpu
def test_float32_is_not_tf32_where_the_process_allows_it():
    exact = run_backbone(load("cpu"), noise(4))[0]
    network = load("cuda", precision="float32")
    if not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("this torch has the old names alone")
    torch.backends.fp32_precision = "tf32"
    try:
        assert apart(run_backbone(network, noise(4))[0], exact) < 5e-5  # of TF32 it would be some 5e-4
    finally:
        torch.backends.fp32_precision = "none"


class StopError(Exception):
    pass


def stop(done, _total):
    if done >= 8:
        raise StopError


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_same_bytes_again_and_after_an_interruption(device, precision, manifest, tmp_path, *, tree):
    backbone = load(device, precision=precision, batch_size=3)
    extract(manifest, backbone, tmp_path / "whole", **SETTINGS)
    with pytest.raises(StopError):
        extract(manifest, backbone, tmp_path / "cache", progress=stop, **SETTINGS)
    extract(manifest, load(device, precision=precision, batch_size=3), tmp_path / "cache", **SETTINGS)
    assert tree(tmp_path / "cache") == tree(tmp_path / "whole")


def test_what_is_damaged_comes_back_and_what_is_sound_is_recognised(device, manifest, tmp_path, tree):
    backbone = load(device, batch_size=3)
    extract(manifest, backbone, tmp_path / "cache", **SETTINGS)
    before = tree(tmp_path / "cache")
    assert recheck(manifest, backbone, tmp_path / "cache", 8) == []
    assert recheck(manifest, load("cpu", batch_size=3), tmp_path / "cache", 8) == []
    [chunk] = (tmp_path / "cache" / "features.zarr" / "embeddings").glob("c.1.*")
    chunk.write_bytes(bytes(chunk.stat().st_size))
    assert repair(manifest, backbone, tmp_path / "cache").different == ()
    assert tree(tmp_path / "cache") == before


@pytest.mark.gpu
def test_the_batch_size_is_found_and_used_again(manifest, tmp_path):
    backbone = load("cuda")
    assert backbone.automatic_batch
    assert estimate(plan(manifest, backbone.spec, stride_px=40), backbone)["windows_per_s"] > 0
    settings = {"stride_px": 40, "block_windows": 16}
    extract(manifest, backbone, tmp_path / "cache", **settings)
    assert 8 <= open_cache(tmp_path / "cache").pins.batch_size <= 16
    assert extract(manifest, backbone, tmp_path / "cache", **settings).done == 0


@pytest.mark.gpu
def test_where_memory_ends_the_batch_is_smaller_and_memory_comes_back():
    backbone = load("cuda", window_px=512)  # a batch of 512 takes 1.6 GB for its pixels alone
    release_memory()
    before, (_, total) = torch.cuda.memory_allocated(), torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (800 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            windows_per_s(backbone.with_batch_size(512), 512)
        release_memory()
        assert torch.cuda.memory_allocated() - before < 32 << 20
        assert 1 <= find_batch_size(backbone, windows_per_s, block_windows=512) < 512
        release_memory()
        assert torch.cuda.memory_allocated() - before < 32 << 20
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_two_threads_share_a_backbone(device):
    backbone = load(device, precision="float32", batch_size=4)
    batches = [noise(10, seed) for seed in range(8)]
    alone = [backbone(batch).cpu() for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda batch: backbone(batch).cpu(), batches))
    for expected, found in zip(alone, together, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "residual:srm"])
def test_every_kind_of_backbone_has_its_results_on_its_device(device, name):
    side = 56 if name.startswith("residual") else SIDE
    options = {"weights": "pretrained"} if name.startswith("residual") else {}
    backbone = load(device, name=name, window_px=side, precision="float32", **options)
    exact = load("cpu", name=name, window_px=side, precision="float32", **options)
    found = backbone(noise(5, side=side))
    assert found.device.type == device
    assert apart(found.cpu(), exact(noise(5, side=side))) < 1e-4


def test_gradients_reach_the_network(device):
    backbone = load(device, precision="bfloat16")
    backbone.network.requires_grad_()
    backbone.embed(torch.from_numpy(noise(2))).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in backbone.network.parameters())
    assert sum(p.grad is not None for p in backbone.network.parameters()) > 100


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_blocks_give_what_others_give(precision, manifest, tmp_path):
    plain, compiled = (load("cuda", precision=precision, batch_size=4, compiled=flag) for flag in (False, True))
    assert apart(compiled(noise(7)).cpu(), plain(noise(7)).cpu()) < (1e-4 if precision == "float32" else 3e-2)
    assert torch.equal(compiled(noise(7))[4:], compiled(noise(7)[4:]))
    extract(manifest, compiled, tmp_path / "cache", **SETTINGS)
    assert open_cache(tmp_path / "cache").verify() == []


@pytest.mark.gpu
def test_a_second_device_is_used_where_it_is_named():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device alone")
    first, second = (load(f"cuda:{number}", batch_size=3) for number in (0, 1))
    assert second(noise(2)).device.index == 1
    with ThreadPoolExecutor(1) as pool:  # another thread's device is the first one
        begun = pool.submit(start_batch, second, noise(3), "float16", cls=False)
        found = begun.result()()
    expected = start_batch(first, noise(3), "float16", cls=False)()
    assert apart(found.arrays["embeddings"], expected.arrays["embeddings"]) < 3e-2


@pytest.mark.gpu
def test_a_worker_of_ray_computes_on_its_device(manifest, tmp_path, tree):
    pytest.importorskip("ray")
    backbone = load("cuda", batch_size=3)
    extract(manifest, backbone, tmp_path / "alone", **SETTINGS)
    extract(manifest, backbone, tmp_path / "cache", runner=RayRunner(address="local", workers=1), **SETTINGS)
    assert tree(tmp_path / "cache") == tree(tmp_path / "alone")


@pytest.mark.gpu
def test_the_doctor_finds_no_fault():
    from dlprobe.doctor.engines import compare_engines
    from dlprobe.doctor.rates import gemm_rates

    found = list(compare_engines("timm:test_vit", "random:0", 160, gemm_rates(), timing=True))
    assert [finding.advice for finding in found if "cuda" in finding.topic and finding.advice] == []
    assert sum("cuda" in finding.topic for finding in found) == 6


@pytest.mark.gpu
def test_the_benchmark_runs():
    script = Path(__file__).parents[2] / "benchmarks" / "extract.py"
    run = subprocess.run([sys.executable, script, "--quick"], capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr
    assert "of the measured bfloat16 matrix product" in run.stdout
