"""Files for one localized image: score map, mask, overlay and a JSON record, published together or not at all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dlprobe.backbones import load_backbone
from dlprobe.data.images import read_image
from dlprobe.errors import DataError, OutputError, ProbeError
from dlprobe.localization.sliding import ScoreMap, score_map
from dlprobe.probes import Probe
from dlprobe.publish import publish
from dlprobe.spec import sha256_of_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dlprobe.backbones import Backbone

#: Percentile of the working-size map that stands for the whole image.
IMAGE_SCORE_PERCENTILE = 99.0
RESULT_NAME = "result.json"
_OVERLAY_RGB = np.array([213, 94, 0], np.float32)  # vermillion of the Okabe-Ito palette
_OVERLAY_SHARE = 0.55


@dataclass(frozen=True, slots=True)
class Localization:
    """What was written for one image, or why nothing was.

    Attributes
    ----------
    image : str
        Path as given.
    folder : Path or None
        Where its files are; None if the image was rejected.
    image_score : float
        99th percentile of the score map at working size; NaN if rejected.
    area : float
        Share of the working-size map at or above the threshold; NaN if rejected.
    reason : str
        Why it was rejected, or empty.
    """

    image: str
    folder: Path | None
    image_score: float
    area: float
    reason: str = ""


def localize(
    images: Sequence[str | os.PathLike[str]],
    backbone: Backbone,
    probe: Probe,
    out: str | os.PathLike[str],
    *,
    threshold: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> list[Localization]:
    """Write the score map, mask and overlay of each image into a folder of its own below `out`.

    Each folder holds ``score.npy`` (float32), ``score.png`` (16 bits: score times 65,535), ``mask.png`` (0 or 255),
    ``overlay.png``, ``disagreement.png`` (16 bits) and ``result.json``.

    Parameters
    ----------
    images : sequence of path
        Images; one that cannot be read is rejected, and the others go on.
    backbone, probe : Backbone, Probe
        As for `score_map`.
    out : path
        Folder to write into; existing results of the same name are replaced.
    threshold : float, optional
        Score at or above which a pixel is marked; the one on the probe's card by default.
    progress : callable, optional
        Called with the number of images done and in all.
    **options
        Further arguments of `score_map`.

    Returns
    -------
    list of Localization
        In the order of `images`.

    Raises
    ------
    DataError
        If not one image can be read.
    OutputError
        If `out` exists and is no folder.
    """
    target = Path(out)
    names = _folder_names(images)
    _check_target(target, names)
    cut = probe.threshold if threshold is None else threshold
    results: list[Localization] = []
    for image, name in zip(images, names, strict=True):
        try:
            pixels = read_image(Path(image))
        except DataError as error:
            results.append(Localization(str(image), None, float("nan"), float("nan"), str(error)))
        else:
            found = score_map(pixels, backbone, probe, **options)
            target.mkdir(parents=True, exist_ok=True)
            results.append(_written(Path(image), pixels, found, target / name, _provenance(backbone, probe, cut)))
        if progress:
            progress(len(results), len(images))
    if results and all(result.folder is None for result in results):
        raise DataError(results[0].reason)
    return results


def localize_files(
    probe: str | os.PathLike[str],
    images: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    weights: str | None = None,
    device: str = "auto",
    engine: str = "torch",
    precision: str = "auto",
    batch_size: int | None = None,
    **options: Any,
) -> list[Localization]:
    """Load a probe and the backbone that its card names, and localize images.

    Parameters
    ----------
    probe : path
        A probe file.
    images, out
        As for `localize`.
    weights : str, optional
        Where the backbone's weights are, if not where the card says; their content must be the same.
    device, engine, precision, batch_size
        As for `dlprobe.backbones.load_backbone`.
    **options
        Further arguments of `localize` and `score_map`.

    Raises
    ------
    ProbeError
        If the card does not name a backbone.
    IdentityError
        If the backbone that was loaded is not the one that the probe was fitted on.
    """
    head, backbone = load_probe(
        probe, weights=weights, device=device, engine=engine, precision=precision, batch_size=batch_size
    )
    return localize(images, backbone, head, out, **options)


def load_probe(
    probe: str | os.PathLike[str],
    *,
    weights: str | None = None,
    device: str = "auto",
    engine: str = "torch",
    precision: str = "auto",
    batch_size: int | None = None,
) -> tuple[Probe, Backbone]:
    """Load a probe and the backbone that its card names; arguments and errors as for `localize_files`."""
    head = Probe.load(Path(probe))
    spec = head.model_spec
    if spec is None:
        msg = f"{probe} does not name its backbone; use dlprobe.localization.localize with a backbone of your own"
        raise ProbeError(msg)
    if spec.backbone.startswith("module:"):
        msg = f"{probe} names {spec.backbone}, which would run code; load it yourself for dlprobe.localization.localize"
        raise ProbeError(msg)
    where = weights or str(head.card.get("weights", "pretrained"))
    if weights is None and (os.sep in where or where.endswith((".pth", ".safetensors"))) and not Path(where).exists():
        msg = (
            f"{probe} was fitted on weights from {where}, which is not here; "
            f"give them with --weights (sha256 {spec.weights_sha256[:16]}...)"
        )
        raise ProbeError(msg)
    backbone = load_backbone(
        spec.backbone,
        weights=where,
        device=device,
        engine=engine,
        precision=precision,
        layers=spec.layers or (-1,),
        norm=spec.norm,
        window_px=spec.window_px,
        batch_size=batch_size,
    )
    head.require_model(backbone.spec, f"{probe} and the backbone that was loaded")
    return head, backbone


def overlay(pixels: NDArray[np.uint8], scores: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return an image tinted by its scores, the mask's border drawn.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (height, width, 3)
        The image.
    scores : ndarray of float32, shape (height, width)
        In [0, 1]: the strength of the tint.
    mask : ndarray of bool, shape (height, width)
        Region whose border is drawn.
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    share = (_OVERLAY_SHARE * scores)[..., None]
    tinted = pixels * (1 - share) + _OVERLAY_RGB * share
    width = max(1, round(min(mask.shape) / 256))
    tinted[binary_dilation(mask, iterations=width) & ~binary_erosion(mask, border_value=1)] = (255, 255, 255)
    tinted[mask & ~binary_erosion(mask, iterations=width, border_value=1)] = _OVERLAY_RGB
    return np.asarray(np.clip(np.rint(tinted), 0, 255), dtype=np.uint8)


def _written(
    image: Path, pixels: NDArray[np.uint8], found: ScoreMap, folder: Path, provenance: dict[str, Any]
) -> Localization:
    cut = provenance["threshold"]
    scores, mask = found.inpainted, found.inpainted >= cut
    working = found.working_scores
    image_score = float(np.percentile(working, IMAGE_SCORE_PERCENTILE))
    area = float((working >= cut).mean())
    record = {
        "image": {"path": str(image), "sha256": sha256_of_file(image), "height": mask.shape[0], "width": mask.shape[1]},
        "working_size": {"height": working.shape[0], "width": working.shape[1]},
        "image_score": image_score,
        "image_score_is": f"percentile {IMAGE_SCORE_PERCENTILE:g} of the score map at working size",
        "area": area,
        "n_windows_max": int(found.n_windows.max()),
        **provenance,
    }
    with publish(folder) as scratch:
        scratch.mkdir()
        np.save(scratch / "score.npy", scores, allow_pickle=False)
        Image.fromarray(_sixteen_bits(scores)).save(scratch / "score.png")
        Image.fromarray(_sixteen_bits(found.disagreement)).save(scratch / "disagreement.png")
        Image.fromarray(mask.astype(np.uint8) * 255).save(scratch / "mask.png")
        Image.fromarray(overlay(pixels, scores, mask)).save(scratch / "overlay.png")
        (scratch / RESULT_NAME).write_text(json.dumps(record, indent=2) + "\n")
    return Localization(str(image), folder, image_score, area)


def _check_target(target: Path, names: Sequence[str]) -> None:
    """Refuse, before the first image is looked at, folders that hold something else."""
    above = next(path for path in (target, *target.absolute().parents) if path.exists())
    if not above.is_dir():
        msg = f"{above} exists and is no folder; give another output folder"
        raise OutputError(msg)
    for folder in (target / name for name in names):
        if folder.exists() and not (folder / RESULT_NAME).is_file():
            msg = f"{folder} exists and holds no result of dlprobe; give another output folder"
            raise OutputError(msg)


def _provenance(backbone: Backbone, probe: Probe, threshold: float) -> dict[str, Any]:
    return {
        "threshold": threshold,
        "threshold_policy": probe.card.get("threshold_policy", "") if threshold == probe.threshold else "given by hand",
        "probe_sha256": probe.sha256,
        "backbone": backbone.spec.backbone,
        "weights": backbone.weights,
        "weights_sha256": backbone.spec.weights_sha256,
        "model_fingerprint": backbone.spec.fingerprint,
    }


def _sixteen_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.asarray(np.rint(np.clip(values, 0, 1) * 65535), dtype=np.uint16)


def _folder_names(images: Sequence[str | os.PathLike[str]]) -> list[str]:
    names: dict[str, None] = {}
    for image in images:
        stem = Path(image).stem or "image"
        taken, name = 2, stem
        while name in names:
            name, taken = f"{stem}-{taken}", taken + 1
        names[name] = None
    return list(names)
