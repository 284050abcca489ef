"""Two thousand damaged files go through a scan and an extraction: each is embedded or rejected with a reason."""

import io

import numpy as np
import pytest
from PIL import Image

from dlprobe.backbones import load_backbone
from dlprobe.cache import open_cache
from dlprobe.data import scan
from dlprobe.extraction import extract

WINDOW_PX = 56
N_FILES = 2000
PICTURE = np.kron(np.random.default_rng(0).integers(0, 255, (8, 8, 3)), np.ones((7, 7, 1))).astype(np.uint8)


def encoded(kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, kind, **options)
    return buffer.getvalue()


SOUND = {
    "png": encoded("PNG"),
    "jpg": encoded("JPEG"),
    "jpeg": encoded("JPEG", progressive=True),
    "webp": encoded("WEBP"),
    "tif": encoded("TIFF"),
    "bmp": encoded("BMP"),
}


def damage(content, other, rng):
    """Truncate, flip bits, give another format's header, or overwrite bytes of the header."""
    content, how = bytearray(content), rng.integers(4)
    if how == 0:
        return bytes(content[: rng.integers(len(content))])
    if how == 1:
        for at in rng.integers(len(content), size=rng.choice([1, 3, 20])):
            content[at] ^= 1 << rng.integers(8)
    elif how == 2:
        length = int(rng.integers(4, 40))
        content[:length] = other[:length]
    else:
        for at in rng.integers(min(64, len(content)), size=5):
            content[at] = rng.integers(256)
    return bytes(content)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    rng = np.random.default_rng(7)
    folder = tmp_path_factory.mktemp("damaged") / "real"
    folder.mkdir()
    kinds = list(SOUND)
    for i in range(N_FILES):
        kind, other = rng.choice(kinds, size=2)
        (folder / f"{i:04}.{kind}").write_bytes(damage(SOUND[kind], SOUND[other], rng))
    return folder.parent


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow comments on damage; since 2026-11, Pillow 13
def test_every_damaged_file_is_embedded_or_rejected_with_a_reason(root, tmp_path):
    found = scan(root, layout="folder", sample=None, max_pixels=1_000_000)
    assert len(found.manifest) + len(found.rejects) == N_FILES
    assert min(len(found.manifest), len(found.rejects)) > N_FILES // 5  # both ways were taken
    assert all(reject.reason and "\n" not in reject.reason for reject in found.rejects)

    frame = found.manifest.frame
    manifest = found.manifest.select((frame["width"] <= 200) & (frame["height"] <= 200))
    backbone = load_backbone("residual:srm", window_px=WINDOW_PX)
    report = extract(manifest, backbone, tmp_path / "cache", stride_px=WINDOW_PX)
    cache = open_cache(tmp_path / "cache")
    cache.require_complete()
    windows = cache.windows
    assert set(windows.index[windows["rejected"]]) == {at for reject in report.rejected for at in reject.windows}
    assert 0 < windows["rejected"].sum() < len(windows)
    assert all(reject.reason and "\n" not in reject.reason for reject in report.rejected)
    assert np.isfinite(cache.read(windows.index[~windows["rejected"]]).embeddings).all()
