"""The engine ``openvino``: the same torch network, converted for the CPU (extra ``openvino``).

Each window is a request of its own, several of which run at the same time on threads of their own: an embedding does
not depend on the windows beside it, there is one shape to compile, and the next requests wait in the queue while the
results of the last are taken.

OpenVINO reports to its makers when it is imported, and when its `convert_model` is called, unless it was forbidden
to. It is imported here without the package that does so.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from contextlib import contextmanager
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from dlprobe.backbones.engines.torch_engine import Tokens
    from dlprobe.spec import Pins

_TELEMETRY = "openvino_telemetry"
_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
#: Requests for each one that runs: the others wait in the queue.
_REQUESTS_A_STREAM = 2


class OpenVinoEngine:
    """Runs the network's forward in OpenVINO.

    Parameters
    ----------
    network : Module
        Holds the weights, in evaluation mode on the CPU.
    tokens : callable
        From normalised pixels to tokens, by that network.
    window_px : int
        Side of a window.
    pins : Pins
        Precision.
    """

    def __init__(
        self, network: torch.nn.Module, tokens: Callable[[torch.Tensor], Tokens], window_px: int, pins: Pins
    ) -> None:
        core = _core()
        compiled = core.compile_model(
            _converted(_Tokens(network, tokens), window_px),
            "CPU",
            {
                "PERFORMANCE_HINT": "THROUGHPUT",
                "INFERENCE_PRECISION_HINT": _PRECISIONS[pins.precision],
                "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                "ENABLE_CPU_PINNING": False,  # other work shares the cores: decoding, hashing, other programs
            },
        )
        streams = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._idle = [compiled.create_infer_request() for _ in range(_REQUESTS_A_STREAM * streams)]
        self._running: deque[tuple[Any, NDArray[np.float32], _Batch, int]] = deque()
        self._shapes = [tuple(output.shape)[1:] for output in compiled.outputs]
        self._lock = threading.RLock()

    def with_pins(self, _pins: Pins) -> OpenVinoEngine:
        """Return the same engine, to which batches are all one."""
        return self

    def start(self, pixels: torch.Tensor) -> Callable[[], Tokens]:
        """Begin with a batch of normalised pixels (batch, 3, window_px, window_px); return what waits for its tokens.

        Batches come out in the order in which they went in, whoever asks first.
        """
        batch = _Batch([np.empty((len(pixels), *shape), np.float32) for shape in self._shapes], len(pixels))
        with self._lock:
            for index in range(len(pixels)):
                if not self._idle:
                    self._take_oldest()
                request = self._idle.pop()
                window = pixels[index : index + 1].numpy()
                request.start_async([window], share_inputs=True)
                self._running.append((request, window, batch, index))
        return lambda: self._finish(batch)

    def compute(self, pixels: torch.Tensor) -> Tokens:
        """Return the tokens of a batch; no gradients."""
        return self.start(pixels)()

    def _finish(self, batch: _Batch) -> Tokens:
        with self._lock:
            while batch.left:
                self._take_oldest()
        *summary, patches = map(torch.from_numpy, batch.outputs)
        return (summary[0] if summary else None), patches

    def _take_oldest(self) -> None:
        request, _, batch, index = self._running.popleft()
        try:
            request.wait()
            for output, found in zip(batch.outputs, request.output_tensors, strict=True):
                output[index] = found.data[0]
        finally:
            batch.left -= 1
            self._idle.append(request)


class _Batch:
    """Outputs of a batch, and how many of its windows are still at work."""

    def __init__(self, outputs: list[NDArray[np.float32]], left: int) -> None:
        self.outputs = outputs
        self.left = left


class _Tokens(torch.nn.Module):
    """What is converted: all of the forward that backbones share, prefix tokens, layers and norm included."""

    def __init__(self, network: torch.nn.Module, tokens: Callable[[torch.Tensor], Tokens]) -> None:
        super().__init__()
        self.network = network
        self._tokens = tokens

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(part for part in self._tokens(pixels) if part is not None)


def has_bfloat16() -> bool:
    """Tell whether OpenVINO computes in bfloat16 on this CPU, rather than emulate it."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def _core() -> Any:
    before = sys.modules.get(_TELEMETRY)
    if before is None:
        sys.modules[_TELEMETRY] = None  # type: ignore[assignment]  # importing it fails, which OpenVINO takes well
    try:
        import openvino
    finally:
        if before is None:
            del sys.modules[_TELEMETRY]
    return openvino.Core()


def _converted(module: torch.nn.Module, window_px: int) -> Any:
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    example = (torch.zeros(1, 3, window_px, window_px),)
    with torch.no_grad(), _only_errors():
        exported = _without_resampling(torch.export.export(module.eval(), example, strict=False), example)
        decoder = TorchFXPythonDecoder.from_exported_program(exported)  # the frontend does not keep it alive
        frontend = FrontEndManager().load_by_framework("pytorch")
        model = frontend.convert(frontend.load(decoder))
    model.reshape([1, 3, window_px, window_px])
    return model


def _without_resampling(exported: torch.export.ExportedProgram, example: tuple[torch.Tensor]) -> Any:
    """Let torch compute here and now what is resampled to the window and does not depend on pixels: positions.

    OpenVINO has no antialiased interpolation; and the constants are thus those of the engine torch.
    """
    module: Any = exported.module()
    found = [node for node in module.graph.nodes if "upsample" in str(node.target)]
    constants = [(node, value) for node in found if (value := _constant(node, module)) is not None]
    for number, (node, value) in enumerate(constants):
        module.register_buffer(name := f"_resampled_{number}", value)
        with module.graph.inserting_before(node):
            node.replace_all_uses_with(module.graph.get_attr(name))
    if not constants:
        return exported
    module.graph.eliminate_dead_code()
    module.recompile()
    return torch.export.export(module, example, strict=False)


def _constant(node: Any, module: torch.nn.Module) -> Any:
    """Return the value of a node of a graph; None if it depends on an input."""
    if node.op == "get_attr":
        return attrgetter(node.target)(module)
    if node.op != "call_function":
        return None
    values = {other: _constant(other, module) for other in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = torch.fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    return node.target(*args, **kwargs)


@contextmanager
def _only_errors() -> Iterator[None]:
    """Keep the decoder from telling which operators this release of torch does not have."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
