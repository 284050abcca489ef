"""The back end ``diffusers``: an inpainting pipeline fills masks, its AutoencoderKL makes the round trip.

As in B-Free (Guillaro et al., CVPR 2025) the auto-encoded image is the pipeline's own auto-encoder without any
diffusion, and a regenerated image is what the pipeline returns, decoded as a whole.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from dlprobe.data.synthesis.families import through
from dlprobe.data.synthesis.generator.backends import Made
from dlprobe.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dlprobe.data.synthesis.generator.sources import Source
    from dlprobe.data.synthesis.photographs import Photograph

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
#: Longest side of a photograph where the model does not tell at which size it was trained, in pixels.
SIDE_PX = 1024
_NAMES = {"steps": "num_inference_steps", "guidance": "guidance_scale", "strength": "strength"}
_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionSettings:
    """What determines what the pipeline makes, besides its weights.

    Parameters
    ----------
    model : str
        Name on the Hugging Face hub, or a local folder in the format of diffusers.
    revision : str
        Branch, tag or commit on the hub; empty: the newest.
    prompt : str
        Text that all fillings follow.
    steps : int, optional
        Denoising steps; None: the pipeline's own number, which is recorded.
    guidance : float, optional
        Scale of classifier-free guidance; None: the pipeline's own.
    strength : float, optional
        Share of the noise that the masked content gets, above 0 up to 1; None: the pipeline's own.
    device : str
        ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
    precision : str
        ``auto`` is ``float32``: what is left of an image is to be the auto-encoder's trace, not that of rounding.

    Raises
    ------
    DataError
        If a value is out of range.
    """

    model: str
    revision: str = ""
    prompt: str = ""
    steps: int | None = None
    guidance: float | None = None
    strength: float | None = None
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not self.model:
            msg = "the back end diffusers needs a model; name one on the hub or a local folder with --model"
            raise DataError(msg)
        if self.steps is not None and self.steps < 1:
            msg = f"{self.steps} denoising steps make no image; give at least 1"
            raise DataError(msg)
        if self.strength is not None and not 0 < self.strength <= 1:
            msg = f"a strength of {self.strength:g} is out of range; give one above 0, up to 1"
            raise DataError(msg)
        if self.precision != "auto" and self.precision not in DTYPES:
            msg = f"no precision {self.precision!r}; write auto, {', '.join(DTYPES)}"
            raise DataError(msg)
        if self.device not in {"auto", "cpu", *_cuda_devices()}:
            msg = f"no device {self.device!r}; there are {', '.join(['auto', 'cpu', *_cuda_devices()])}"
            raise DataError(msg)


class DiffusionSynthesizer:
    """An inpainting pipeline with its auto-encoder.

    Parameters
    ----------
    settings : DiffusionSettings
        What to load and how to call it.

    Raises
    ------
    DataError
        If the pipeline cannot be loaded, is none for inpainting or has no AutoencoderKL.
    """

    parallel = False
    donating = False

    def __init__(self, settings: DiffusionSettings) -> None:
        self.settings = settings
        self.generator = _UNSAFE.sub("_", Path(settings.model).name) or "diffusers"
        self._pipeline = _load(settings)
        self._accepted = signature(self._pipeline.__call__).parameters
        self._chosen = self._choices()
        self.multiple_px = int(self._pipeline.image_processor.config.vae_scale_factor)
        self.side_px = _native_side_px(self._pipeline)

    def prepare(self, sources: Sequence[Source], donors: Mapping[str, Source]) -> None:
        """Do nothing: the model has been trained elsewhere."""

    def autoencoded(self, photograph: Photograph) -> Iterator[Made]:
        """Yield the photograph after encoding to the mode of the latent distribution and decoding."""
        parameters = self._parameters() | {"latent": "mode"}
        pixels = through(self._round_trip, photograph.pixels, grey=photograph.grey)
        yield Made(self.generator, pixels, parameters)

    def inpainted(
        self,
        photograph: Photograph,
        donor: Photograph | None,  # noqa: ARG002 (one signature for all back ends)
        mask: NDArray[np.bool_],
        rng: np.random.Generator,
    ) -> Iterator[Made]:
        """Yield what the pipeline returns.

        Raises
        ------
        DataError
            If the pipeline refuses the image, returns one of another size or not of numbers, blacks it out, or pastes
            the photograph back outside the mask, which makes no fully regenerated image.
        """
        noise_seed = int(rng.integers(2**31))
        pixels = through(lambda image: self._fill(image, mask, noise_seed), photograph.pixels, grey=photograph.grey)
        if (pixels[~mask] == photograph.pixels[~mask]).all():
            msg = f"{self.settings.model} leaves the photograph as it was outside the mask; take another pipeline"
            raise DataError(msg)
        chosen = {**self._chosen, "prompt": self.settings.prompt, "noise_seed": noise_seed}
        yield Made(self.generator, pixels, self._parameters() | chosen)

    def _fill(self, image: NDArray[np.uint8], mask: NDArray[np.bool_], noise_seed: int) -> NDArray[np.uint8]:
        height, width = mask.shape
        wanted: dict[str, Any] = {
            "prompt": self.settings.prompt,
            "image": Image.fromarray(image),
            "mask_image": Image.fromarray(mask.astype(np.uint8) * 255),
            "height": height,
            "width": width,
            "generator": torch.Generator("cpu").manual_seed(noise_seed),
            "output_type": "np",
            **{_NAMES[name]: value for name, value in self._chosen.items()},
        }
        try:
            result = self._pipeline(**{name: value for name, value in wanted.items() if name in self._accepted})
        except ValueError as error:
            msg = f"{self.settings.model} refuses an image of {width}x{height} px: {_first_line(error)}; change options"
            raise DataError(msg) from error
        except torch.OutOfMemoryError as error:
            msg = f"{self.settings.model} has no memory for {width}x{height} px; take a smaller --side or --precision"
            raise DataError(msg) from error
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            msg = f"the safety checker of {self.settings.model} has blacked an image out; take another seed or prompt"
            raise DataError(msg)
        return self._bytes(np.asarray(result.images[0]), image.shape)

    def _round_trip(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        vae = self._pipeline.vae
        stored = vae.dtype
        upcast = stored == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
        if upcast:  # as the pipelines do: the auto-encoder of SDXL overflows in half precision
            vae.to(dtype=torch.float32)
        try:
            values = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(vae.device, torch.float32) / 127.5 - 1
            with torch.inference_mode():
                decoded = vae.decode(vae.encode(values.to(vae.dtype)).latent_dist.mode()).sample
        finally:
            if upcast:
                vae.to(dtype=stored)
        unit = (decoded[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        return self._bytes(unit, pixels.shape)

    def _bytes(self, unit: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.uint8]:
        if unit.shape != shape:
            size = "x".join(map(str, unit.shape[1::-1]))
            msg = f"{self.settings.model} gives {size} px for {shape[1]}x{shape[0]} px; give another --side"
            raise DataError(msg)
        if not np.isfinite(unit).all():
            msg = f"{self.settings.model} gives no numbers in {self.settings.precision}; take --precision float32"
            raise DataError(msg)
        pixels: NDArray[np.uint8] = np.clip(np.rint(unit * 255.0), 0, 255).astype(np.uint8)
        return pixels

    def _choices(self) -> dict[str, object]:
        """Return steps, guidance and strength as given, else as the pipeline's signature has them."""
        chosen: dict[str, object] = {}
        for name, theirs in _NAMES.items():
            given = getattr(self.settings, name)
            known = self._accepted.get(theirs)
            if known is None and given is not None:
                msg = f"{type(self._pipeline).__name__} of {self.settings.model} has no {theirs}; leave --{name} out"
                raise DataError(msg)
            if given is not None:
                chosen[name] = given
            elif known is not None and known.default is not Parameter.empty:
                chosen[name] = known.default
        return chosen

    def _parameters(self) -> dict[str, object]:
        vae = self._pipeline.vae
        return {
            "model": self.settings.model,
            "revision": self.settings.revision,
            "pipeline": type(self._pipeline).__name__,
            "autoencoder": type(vae).__name__,
            "device": self._pipeline.device.type,
            "precision": str(vae.dtype).removeprefix("torch."),
            "versions": {name: version(name) for name in ("diffusers", "torch", "transformers")},
        }


def _load(settings: DiffusionSettings) -> Any:
    import diffusers

    folder = Path(settings.model)
    if folder.exists() and not (folder / "model_index.json").is_file():
        msg = f"{folder} has no model_index.json; give a folder that a diffusers pipeline was saved to"
        raise DataError(msg)
    with _quietly():
        try:
            pipeline = _inpainting_pipeline(settings)
        except (OSError, ValueError, ImportError, SafetensorError) as error:  # the hub's errors are OSErrors
            msg = f"{settings.model} cannot be loaded as an inpainting pipeline: {_first_line(error)}; check --model"
            raise DataError(msg) from error
    vae = getattr(pipeline, "vae", None)
    if not isinstance(vae, diffusers.AutoencoderKL):
        msg = f"{settings.model} has no AutoencoderKL but {type(vae).__name__}; take a latent-diffusion pipeline"
        raise DataError(msg)
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = DTYPES["float32" if settings.precision == "auto" else settings.precision]
    pipeline.to(device=torch.device(device), dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _inpainting_pipeline(settings: DiffusionSettings) -> Any:
    """Return the stored pipeline where it takes a mask, else its counterpart for inpainting."""
    import diffusers

    place = {"revision": settings.revision} if settings.revision else {}
    name = diffusers.DiffusionPipeline.load_config(settings.model, **place).get("_class_name")
    stored = getattr(diffusers, name, None) if isinstance(name, str) else None
    if stored is None:
        msg = f"diffusers has no pipeline class {name}"
        raise ValueError(msg)
    takes_mask = "mask_image" in signature(stored.__call__).parameters
    loader = stored if takes_mask else diffusers.AutoPipelineForInpainting
    return loader.from_pretrained(settings.model, use_safetensors=True, **place)  # pickles can run programs


def _native_side_px(pipeline: Any) -> int:
    """Return the side that the model was trained at, where its configuration tells."""
    configuration = getattr(getattr(pipeline, "unet", None), "config", None)
    latent = getattr(configuration, "sample_size", None)
    return int(latent) * int(pipeline.vae_scale_factor) if isinstance(latent, int) else SIDE_PX


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the two libraries from drawing progress bars of their own while they load."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    switched = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in switched:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in switched:
            library.enable_progress_bar()


def _cuda_devices() -> list[str]:
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return ["cuda", *(f"cuda:{index}" for index in range(number))] if number else []


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
