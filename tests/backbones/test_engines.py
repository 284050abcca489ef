"""Every engine gives the embeddings of float32 torch: closely in float32, within its precision in bfloat16."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from dlprobe.backbones import load_backbone
from dlprobe.backbones.base import LoadRequest
from dlprobe.backbones.engines import choosing, torch_engine
from dlprobe.backbones.engines.batching import find_batch_size
from dlprobe.backbones.engines.copying import to_device
from dlprobe.backbones.engines.torch_engine import TorchEngine
from dlprobe.backbones.weights.perturbed import build_quietly, perturb
from dlprobe.errors import BackboneError, ExtraError
from dlprobe.spec import Pins

pytest.importorskip("openvino")
from dlprobe.backbones.engines.openvino_engine import has_bfloat16

NANO = "timm:vit_nano_patch14_dinov2"
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 14}
#: Name, or configuration of transformers, and window; at 98 px positions of 5x5 patches are interpolated.
NETWORKS = {
    "timm": (NANO, 70),
    "timm, registers": ("timm:vit_nano_patch14_reg4_dinov2", 98),
    "timm, rotary": ("timm:vit_nano_patch16_dinov3", 64),
    "timm, dynamic": ("timm:test_vit", 192),
    "hf": ("Dinov2Config", 98),
    "hf, registers": ("Dinov2WithRegistersConfig", 98),
    "hf, rotary": ("DINOv3ViTConfig", 70),
}


def load(name, window_px, **options):
    return load_backbone(name, **{"weights": "random:0", "device": "cpu", "window_px": window_px, **options})


@pytest.fixture(params=NETWORKS)
def network(request, tmp_path):
    """Return a function that loads the network under an engine."""
    name, window_px = NETWORKS[request.param]
    if name.startswith("timm"):
        return lambda **options: load(name, window_px, **options)
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, name)(**SIZES, intermediate_size=96, image_size=70)
    built = build_quietly(lambda: transformers.AutoModel.from_config(config))
    perturb(built, 0)
    built.save_pretrained(tmp_path)
    return lambda **options: load(f"file:{tmp_path}", window_px, weights="pretrained", **options)


def distance(found, reference):
    """Return relative Euclidean and relative largest distance."""
    found, reference = found.double(), reference.double()
    error = found - reference
    return float(error.norm() / reference.norm()), float(error.abs().max() / reference.abs().max())


def test_openvino_is_torch_in_float32_and_near_to_it_in_bfloat16(network, windows):
    exact = network(layers=(-1, 1))
    pixels = windows(3, exact.spec.window_px)
    same = network(layers=(-1, 1), engine="openvino", precision="float32")
    assert same.spec == exact.spec
    assert same.pins.engine == "openvino"
    assert same(pixels).dtype == torch.float32
    assert max(distance(same(pixels), exact(pixels))) < 1e-5
    assert max(distance(same.class_tokens(pixels), exact.class_tokens(pixels))) < 1e-5
    if has_bfloat16():
        near = network(layers=(-1, 1), engine="openvino")
        assert near.pins.precision == "bfloat16"
        assert 1e-4 < distance(near(pixels), exact(pixels))[0] < 2e-2  # eight bits of mantissa: it cannot be exact
        cosine = torch.nn.functional.cosine_similarity(near(pixels), exact(pixels), dim=-1)
        assert cosine.min() > 0.999


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_window_does_not_depend_on_the_others_nor_on_the_batch(windows, batch_size):
    pixels = windows(5, 70)
    together = load(NANO, 70, engine="openvino", batch_size=batch_size)(pixels)
    alone = load(NANO, 70, engine="openvino")
    assert torch.equal(together, torch.cat([alone(pixels[i : i + 1]) for i in range(5)]))


def test_batches_at_work_at_the_same_time_come_out_as_they_went_in(windows):
    backbone = load(NANO, 70, engine="openvino")
    batches = [torch.from_numpy(windows(3, 70, seed)) for seed in range(6)]
    started = [backbone.start(batch) for batch in batches]
    for number in (4, 0, 5, 4):  # in another order, and again
        summary, patches = started[number]()
        assert torch.equal(patches.reshape(3, 5, 5, -1), backbone(batches[number].numpy()))
        assert torch.equal(summary, backbone.class_tokens(batches[number].numpy()))


def test_a_batch_that_is_not_asked_for_hinders_nobody(windows):
    backbone = load(NANO, 70, engine="openvino")
    expected = backbone(windows(4, 70, 1))
    backbone.start(torch.from_numpy(windows(7, 70, 0)))
    assert torch.equal(backbone(windows(4, 70, 1)), expected)


def test_a_network_without_a_class_token(windows):
    options = {"norm": False}
    backbone = load("timm:test_vit4", 160, engine="openvino", precision="float32", **options)
    exact = load("timm:test_vit4", 160, **options)
    assert max(distance(backbone(windows(1, 160)), exact(windows(1, 160)))) < 1e-5
    with pytest.raises(BackboneError, match="no CLS token"):
        backbone.class_tokens(windows(1, 160))


def test_no_gradients_from_openvino(windows):
    backbone = load(NANO, 70, engine="openvino")
    with pytest.raises(BackboneError, match="no gradients"):
        backbone.embed(torch.from_numpy(windows(1, 70)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (NANO, {"engine": "tensorrt"}, "no engine 'tensorrt'; write torch or openvino"),
        (NANO, {"engine": "openvino", "device": "cuda"}, "on the CPU, not on cuda"),
        (NANO, {"engine": "openvino", "precision": "float16"}, "float16 is not for the CPU"),
        (NANO, {"engine": "openvino", "compiled": True}, "leave --compile out"),
        ("residual:srm", {"engine": "openvino"}, "leave --engine"),
        ("residual:srm", {"compiled": True}, "leave --engine"),
        ("module:math.floor", {"engine": "openvino"}, "leave --engine and --compile out"),
        ("module:math.floor", {"compiled": True}, "leave --engine and --compile out"),
    ],
)
def test_what_cannot_be_is_one_line(name, options, message):
    weights = "random:0" if name.startswith("timm") else "pretrained"
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(name, **{"device": "auto", "weights": weights, **options})
    assert "\n" not in str(caught.value)


def test_bfloat16_where_the_cpu_has_none(monkeypatch):
    monkeypatch.setattr("dlprobe.backbones.engines.openvino_engine.has_bfloat16", lambda: False)
    with pytest.raises(BackboneError, match="no bfloat16 on this CPU"):
        load(NANO, 70, engine="openvino", precision="bfloat16")
    assert load(NANO, 70, engine="openvino").pins.precision == "float32"


def test_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExtraError, match=r"pip install 'dlprobe\[openvino\]'"):
        load(NANO, 70, engine="openvino")


def test_conversion_tells_nobody(tmp_path):
    """OpenVINO would make a folder with a number for its user, and send events."""
    code = (
        "import socket\n"
        "def refuse(*_): raise AssertionError('somebody opens a connection')\n"
        "socket.socket.connect = refuse\n"
        "from dlprobe.backbones import load_backbone\n"
        "load_backbone('timm:test_vit', weights='random:0', window_px=160, engine='openvino')\n"
        "import sys; print([name for name in sys.modules if 'telemetry' in name and 'openvino_' in name])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert [path.name for path in tmp_path.rglob("*") if "intel" in path.name.lower()] == []
    assert run.stdout == "[]\n"
    assert run.stderr == ""


@pytest.fixture
def graphs(monkeypatch):
    """Let torch.compile trace as ever, and run what it traced as it is; return the batch sizes that it traced."""
    import torch._dynamo

    seen = []

    def backend(graph, inputs):
        seen.extend(tensor.shape[0] for tensor in inputs if tensor.ndim == 3 and tensor.shape[0] < 100)
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **options: compiled(function, backend=backend, **options))
    torch._dynamo.reset()
    yield seen
    torch._dynamo.reset()


def test_blocks_are_compiled_for_one_size(windows, graphs):
    pixels = windows(5, 70)
    backbone = load(NANO, 70, compiled=True, batch_size=2, layers=(0, -1))
    assert max(distance(backbone(pixels), load(NANO, 70, layers=(0, -1))(pixels))) < 1e-5
    assert graphs
    assert set(graphs) == {2}
    assert len(graphs) < len(backbone.blocks)  # one graph for all blocks, and not one each


def test_sizes_are_tried_without_a_compilation_each(windows, graphs):
    backbone = load(NANO, 70, compiled=True)

    def rate(candidate, size):
        candidate(windows(size, 70))
        return size

    assert find_batch_size(backbone, rate, block_windows=64) == 64
    assert graphs == []
    backbone.with_batch_size(2)(windows(1, 70))
    assert set(graphs) == {2}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm:vit_nano_patch14_reg4_dinov2", "hf:facebook/dinov2-small"])
def test_compiled_blocks_give_the_same_in_full_and_in_partial_batches(windows, name):
    pixels = windows(5, 70)
    backbone = load(name, 70, compiled=True, batch_size=2, layers=(0, -1))
    assert backbone.pins.compiled
    found = backbone(pixels)
    assert max(distance(found, load(name, 70, layers=(0, -1))(pixels))) < 1e-5
    assert torch.equal(found[4:], backbone(np.concatenate([pixels[4:], pixels[4:]]))[:1])


def test_a_machine_that_cannot_compile_is_one_line(windows, monkeypatch):
    from torch._dynamo.exc import TorchDynamoException

    def without_compiler(*_arguments, **_options):
        def forward(*_tokens, **_named):
            msg = "InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1 for more"
            raise TorchDynamoException(msg)

        return forward

    monkeypatch.setattr(torch, "compile", without_compiler)
    backbone = load(NANO, 70, compiled=True)
    with pytest.raises(
        BackboneError, match=r"No working C\+\+ compiler found\); it needs a C\+\+ compiler: install"
    ) as caught:
        backbone(windows(1, 70))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_one_line(tmp_path):
    code = (
        "import numpy as np, torch._inductor.config as config\n"
        "config.cpp.cxx = ('no-such-compiler',)\n"
        "from dlprobe.backbones import load_backbone\n"
        "backbone = load_backbone('timm:test_vit', weights='random:0', device='cpu', window_px=160, compiled=True)\n"
        "backbone(np.zeros((1, 160, 160, 3), np.uint8))\n"
    )
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert run.stderr.splitlines()[-1].startswith("dlprobe.errors.BackboneError: torch.compile fails on this machine")


def test_a_device_is_named_as_its_tensors_are(monkeypatch):
    assert choosing.choose_device("auto" if not torch.cuda.is_available() else "cpu") == torch.empty(0).device

    class Empty:
        def __init__(self, _size, device):
            self.device = torch.device(device.type, device.index or 0)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", Empty)
    for name in ("auto", "cuda", "cuda:0"):
        assert choosing.choose_device(name) == torch.device("cuda", 0)
    assert choosing.choose_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize(("native", "settled"), [(True, "bfloat16"), (False, "float32")])
def test_auto_takes_bfloat16_only_on_a_gpu_that_does_not_emulate_it(monkeypatch, native, settled):
    gpu = torch.device("cuda", 1)
    asked = []
    monkeypatch.setattr(choosing, "choose_device", lambda name: gpu)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(asked.append(device)))
    # Turing says yes when emulation counts
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)
    request = LoadRequest(model="vit", device="cuda:1")
    assert choosing.choose_execution(request, "vit")[1].precision == settled
    assert asked == [gpu]
    assert choosing.choose_execution(replace(request, precision="bfloat16"), "vit")[1].precision == "bfloat16"


def test_what_lies_on_a_device_is_not_pinned():
    class OnDevice:
        device = torch.device("cuda", 0)

        def pin_memory(self):
            msg = "only dense CPU tensors can be pinned"
            raise RuntimeError(msg)

        def to(self, device):
            return device

    for device in (torch.device("cuda"), torch.device("cuda", 0), torch.device("cuda", 1)):
        assert to_device(OnDevice(), device) is device


#: What a user may have set before: by the old names, by the new ones (torch 2.9 on), or above both.
TF32 = """
import json, os, sys, warnings
import torch
from dlprobe.backbones.engines.torch_engine import TorchEngine
from dlprobe.spec import Pins

warnings.simplefilter("error")
backends = torch.backends

def settings():
    found = []
    for read in (
        lambda: backends.cuda.matmul.fp32_precision if NEW else backends.cuda.matmul.allow_tf32,
        lambda: backends.cudnn.conv.fp32_precision if NEW else backends.cudnn.allow_tf32,
        lambda: backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:  # of a mixture of old and new names
            found.append("mixed")
    return found

def reached():
    "What all settings would be if somebody set the one above them."
    if not NEW:
        return None
    was = backends.fp32_precision
    backends.fp32_precision = "ieee"
    try:
        return settings()
    finally:
        backends.fp32_precision = was

NEW = hasattr(backends, "fp32_precision")
user = next((user for user in sys.argv[1:] if os.fork() == 0), None)  # settings are the process's
if user is None:
    while len(sys.argv) > 1:
        assert os.wait()[1] == 0
        del sys.argv[1]
    sys.exit()
exec(user)
reachable, seen = reached(), [settings()]

def tokens(pixels):
    seen.append(settings())
    if len(seen) == 2:  # another thread's call that ends before this one
        engine.compute(pixels)
        seen.append(settings())
    return None, pixels

engine = TorchEngine(tokens, [], Pins(engine="torch", precision="float32", device="cuda", batch_size=2))
engine.compute(torch.zeros(2, 3, 4, 4))
seen.append(settings())
assert reached() == reachable, (reached(), reachable)  # what was inherited still is
sys.stdout.write(json.dumps([user, seen]) + chr(10))
"""


def test_float32_on_cuda_is_not_tf32_and_what_was_set_stays():
    users = ["", "torch.set_float32_matmul_precision('high')"]
    if hasattr(torch.backends, "fp32_precision"):
        users += [
            "torch.set_float32_matmul_precision('medium')",
            "backends.cuda.matmul.fp32_precision = 'tf32'",
            "backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = 'ieee'",
            "backends.fp32_precision = 'tf32'",
            "backends.cudnn.fp32_precision = 'tf32'",
            "backends.cudnn.conv.fp32_precision = 'tf32'",
            "backends.cudnn.conv.fp32_precision = 'none'",
            "backends.cudnn.fp32_precision = 'ieee'; backends.cudnn.conv.fp32_precision = 'tf32'",
            "backends.cudnn.allow_tf32 = True",
        ]
    run = subprocess.run([sys.executable, "-c", TF32, *users], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    found = dict(map(json.loads, run.stdout.splitlines()))
    assert found.keys() == set(users)
    for before, *inside, after in found.values():
        assert len(inside) == 3
        for products, convolutions, *_ in inside:
            assert products in {"ieee", "none", False}
            assert convolutions in {"ieee", "none", False}
        assert after == before


def test_bfloat16_on_cuda_leaves_tf32_alone(monkeypatch):
    seen = []
    monkeypatch.setattr(torch_engine, "without_tf32", lambda: pytest.fail("asked for"))
    pins = Pins(engine="torch", precision="bfloat16", device="cuda", batch_size=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there is no CUDA to autocast for
        TorchEngine(lambda pixels: (None, seen.append(pixels) or pixels), [], pins).compute(torch.zeros(2, 3, 4, 4))
    assert len(seen) == 1
