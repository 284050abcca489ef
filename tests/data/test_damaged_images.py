"""Damaged files: each becomes a `DataError` or a whole array, none a crash or a picture with a hole."""

import io

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageFile

from dlprobe.data.images import image_size, read_image, read_mask
from dlprobe.errors import DataError

SIZE = (12, 17)
RNG = np.random.default_rng(0)
PICTURE = Image.fromarray(RNG.integers(0, 256, (*SIZE, 3), np.uint8))
PALETTE = PICTURE.quantize(16)
DEEP = Image.fromarray(RNG.integers(0, 65536, SIZE, np.uint16))
EXIF = Image.Exif()
EXIF[0x0112] = 6


def encode(image, format_, **options):
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


SEEDS = {
    "png": encode(PICTURE, "PNG", exif=EXIF),
    "png-palette": encode(PALETTE, "PNG", transparency=bytes(range(16))),
    "png-16": encode(DEEP, "PNG"),
    "png-animated": encode(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]),
    "jpeg": encode(PICTURE, "JPEG", exif=EXIF),
    "jpeg-progressive": encode(PICTURE, "JPEG", progressive=True),
    "jpeg-cmyk": encode(PICTURE.convert("CMYK"), "JPEG"),
    "webp": encode(PICTURE, "WEBP"),
    "webp-lossless": encode(PICTURE, "WEBP", lossless=True, exif=EXIF),
    "gif": encode(PALETTE, "GIF"),
    "bmp": encode(PICTURE, "BMP"),
    "tiff": encode(PICTURE, "TIFF"),
    "tiff-lzw": encode(PICTURE, "TIFF", compression="tiff_lzw"),
    "tiff-jpeg": encode(PICTURE, "TIFF", compression="jpeg"),
    "ppm": encode(PICTURE, "PPM"),
    "jpeg2000": encode(PICTURE, "JPEG2000"),
}
READERS = (image_size, read_image, lambda path: read_mask(path, SIZE))


def truncated(content, rng):
    return content[: rng.integers(len(content))]


def flipped(content, rng):
    bits = bytearray(content)
    for position in rng.integers(len(bits) * 8, size=rng.integers(1, 9)):
        bits[position // 8] ^= 1 << (position % 8)
    return bytes(bits)


def wrong_header(content, rng):
    start = rng.integers(min(64, len(content)))
    return content[:start] + rng.bytes(4) + content[start + 4 :]


def spliced(content, rng):
    start, length = rng.integers(len(content)), rng.integers(1, 20)
    return content[:start] + rng.bytes(rng.integers(0, 20)) + content[start + length :]


@pytest.mark.parametrize("damage", [truncated, flipped, wrong_header, spliced])
@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow comments on damage; since 2026-11, Pillow 13
def test_2048_damaged_files_never_crash(tmp_path, kind, damage):
    rng = np.random.default_rng(list(kind.encode() + damage.__name__.encode()))
    path = tmp_path / "damaged.png"
    messages = []
    for _ in range(32):
        path.write_bytes(damage(SEEDS[kind], rng))
        for reader in READERS:
            try:
                found = reader(path)
            except DataError as error:
                messages.append(str(error))
                continue
            if reader is image_size:
                assert min(found) > 0
            else:
                assert found.dtype in (np.uint8, np.bool_)
                assert found.ndim == (3 if found.dtype == np.uint8 else 2)
                assert found.size > 0
    assert messages
    assert all("\n" not in message and "damaged.png" in message for message in messages)


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow comments on damage; since 2026-11, Pillow 13
def test_a_truncated_file_is_refused_or_has_all_its_pixels(tmp_path, kind):
    path = tmp_path / "cut.png"
    content = SEEDS[kind]
    path.write_bytes(content)
    whole = read_image(path)
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        try:
            found = read_image(path)
        except DataError:
            continue
        assert_array_equal(found, whole)
    path.write_bytes(content[: len(content) // 2])
    if kind != "png-animated":
        with pytest.raises(DataError):
            read_image(path)


@pytest.mark.parametrize("kind", ["jpeg-progressive", "png", "gif"])
def test_truncated_files_are_refused_even_where_pillow_was_told_to_fill_them(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    path = tmp_path / "cut.png"
    path.write_bytes(SEEDS[kind][: len(SEEDS[kind]) * 3 // 4])
    with Image.open(path) as image:
        image.load()  # the trap is set
    with pytest.raises(DataError, match="cannot be read"):
        read_image(path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True
