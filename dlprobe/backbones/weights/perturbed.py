"""Random weights that mean something, said aloud: ``random:SEED``, and the hash of weights that have no file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Network = TypeVar("Network", bound=torch.nn.Module)

#: Standard deviation of what is added to every tensor but LayerScale.
PERTURBATION = 0.02

#: Last part of the names of LayerScale's factors in timm and transformers.
LAYER_SCALE_NAMES = frozenset({"gamma", "gamma_1", "gamma_2", "lambda1"})


def build_quietly(build: Callable[[], Network], seed: int = 0) -> Network:
    """Build a network with a seeded initialisation, leaving the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return build()


def perturb(network: torch.nn.Module, seed: int) -> None:
    """Set every LayerScale factor to 1 and add N(0, 0.02) to every other tensor, in place.

    timm's and transformers' untouched initialisation of DINOv2 has LayerScale 1e-5 and zero biases, so that its
    blocks do next to nothing and two of them may be swapped unnoticed.

    Parameters
    ----------
    network : torch.nn.Module
        On the CPU.
    seed : int
        Of a private generator.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in sorted(network.state_dict().items()):
            if not tensor.is_floating_point():
                continue
            if name.rpartition(".")[2] in LAYER_SCALE_NAMES:
                tensor.fill_(1.0)
            else:
                tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=PERTURBATION)


def sha256_of_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 over names, dtypes, shapes and bytes of tensors, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
