"""Reading images and masks, against Pillow and NumPy."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageCms

from dlprobe.data.images import MAX_PIXELS, enlarge, enlarge_regions, image_size, read_image, read_mask
from dlprobe.errors import DataError

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (9, 14, 3), np.uint8)


def save(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


def test_a_photograph_comes_back_bit_for_bit(tmp_path):
    path = save(tmp_path / "a.png", RGB)
    found = read_image(path)
    assert_array_equal(found, RGB)
    assert found.dtype == np.uint8
    assert image_size(path) == (9, 14)


def ties(out, side):
    """Tell where a new pixel's centre falls between two old pixels."""
    return (2 * np.arange(out) + 1) * side % (2 * out) == 0


@pytest.mark.parametrize("size", [(9, 14), (40, 20), (28, 28), (27, 300)])
def test_enlarging_is_pillows_own(size):
    height, width = size
    pixels = RNG.integers(0, 256, (height, width, 3), np.uint8)
    regions = RNG.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    found, moved = enlarge(pixels, 28), enlarge_regions(regions, 28)
    if min(size) >= 28:
        assert found is pixels
        assert moved is regions
        return
    assert found.shape[:2] == moved.shape
    assert min(moved.shape) >= 28
    out = (moved.shape[1], moved.shape[0])
    assert_array_equal(found, np.asarray(Image.fromarray(pixels).resize(out, Image.Resampling.BICUBIC)))
    assert_array_equal(moved, np.asarray(Image.fromarray(regions).resize(out, Image.Resampling.NEAREST)))
    rows = ((np.arange(moved.shape[0]) + 0.5) * height / moved.shape[0]).astype(int)
    columns = ((np.arange(moved.shape[1]) + 0.5) * width / moved.shape[1]).astype(int)
    sure = np.ix_(~ties(moved.shape[0], height), ~ties(moved.shape[1], width))
    assert_array_equal(moved[sure], regions[np.ix_(rows, columns)][sure])  # nearest: no class is invented


def test_a_mask_is_true_above_127(tmp_path):
    grey = np.array([[0, 1, 126, 127], [128, 129, 254, 255]], np.uint8)
    path = save(tmp_path / "m.png", grey)
    assert_array_equal(read_mask(path, (2, 4)), grey > 127)
    assert image_size(path) == (2, 4)


def test_a_mask_of_another_size_is_refused(tmp_path):
    path = save(tmp_path / "m.png", np.zeros((2, 4), np.uint8))
    with pytest.raises(DataError, match="4x2 px, its image 2x4"):
        read_mask(path, (4, 2))


@pytest.mark.parametrize("reader", [image_size, read_image, lambda path: read_mask(path, (1, 1))])
def test_missing_files_and_other_files_are_data_errors(tmp_path, reader):
    with pytest.raises(DataError, match=r"no (image|mask) at .*a\.png"):
        reader(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image at all")
    with pytest.raises(DataError, match=r"b\.png is damaged or in none of the formats PNG, JPEG"):
        reader(tmp_path / "b.png")
    with pytest.raises(DataError):
        reader(tmp_path)


def encode(pixels, format_, **options):
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def oriented(number):
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


#: What each EXIF orientation asks for, in NumPy.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
LOSSLESS = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
    "tif": {"format": "TIFF"},
    "lzw.tif": {"format": "TIFF", "compression": "tiff_lzw"},
}


@pytest.mark.parametrize("number", UPRIGHT)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_orientation_is_applied_to_images_sizes_and_masks(tmp_path, kind, number):
    path = save(tmp_path / f"a.{kind}", RGB, exif=oriented(number), **LOSSLESS[kind])
    expected = UPRIGHT[number](RGB)
    assert_array_equal(read_image(path), expected)
    assert image_size(path) == expected.shape[:2]
    mask = RGB[..., 0] > 127
    path = save(tmp_path / f"m.{kind}", mask.astype(np.uint8) * 255, exif=oriented(number), **LOSSLESS[kind])
    expected = UPRIGHT[number](mask)
    assert_array_equal(read_mask(path, expected.shape), expected)


@pytest.mark.parametrize("number", UPRIGHT)
def test_orientation_of_a_photograph_as_opencv_sees_it(tmp_path, number):
    path = save(tmp_path / "a.jpg", SMOOTH, exif=oriented(number), quality=95)
    assert_array_equal(read_image(path), cv2.imread(str(path))[..., ::-1])
    assert image_size(path) == read_image(path).shape[:2]


def test_an_orientation_behind_the_pixels_of_a_png_counts(tmp_path):
    content = encode(RGB, "PNG")
    exif = oriented(6).tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    path = tmp_path / "a.png"
    path.write_bytes(content[:-12] + chunk + content[-12:])
    assert image_size(path) == (14, 9)
    assert_array_equal(read_image(path), UPRIGHT[6](RGB))


def test_the_size_of_a_png_is_known_without_its_pixels(tmp_path):
    content = encode(RNG.integers(0, 256, (60, 70, 3), np.uint8), "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(content[:200] + bytes(200) + content[400:])
    assert image_size(path) == (60, 70)
    with pytest.raises(DataError, match="cannot be read"):
        read_image(path)


GREY = RNG.integers(0, 256, (9, 14), np.uint8)
ALPHA = RNG.integers(0, 256, (9, 14), np.uint8)
SMOOTH = np.stack(np.broadcast_arrays(np.arange(60)[:, None] * 4, np.arange(80) * 3, 128), -1).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (GREY, np.dstack([GREY] * 3)),
        (np.dstack([GREY, ALPHA]), np.dstack([GREY] * 3)),
        (np.dstack([RGB, ALPHA]), RGB),
        (GREY > 99, np.dstack([(GREY > 99) * np.uint8(255)] * 3)),
    ],
    ids=["grey", "grey-alpha", "rgb-alpha", "two-level"],
)
def test_grey_is_spread_and_transparency_dropped(tmp_path, pixels, expected):
    path = save(tmp_path / "a.png", pixels)
    found = read_image(path)
    assert found.dtype == np.uint8
    assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("format_", "transparency"), [("PNG", None), ("PNG", 3), ("PNG", bytes(range(64))), ("GIF", None), ("GIF", 3)]
)
def test_palettes_are_looked_up(tmp_path, format_, transparency):
    indices = RNG.integers(0, 64, (9, 14), np.uint8)
    palette = RNG.integers(0, 256, (64, 3), np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    path = tmp_path / "a.png"
    path.write_bytes(encode(image, format_, **({} if transparency is None else {"transparency": transparency})))
    assert_array_equal(read_image(path), palette[indices])


DEEP = RNG.integers(0, 65536, (9, 14, 3), np.uint16)


@pytest.mark.parametrize(("suffix", "channels"), [(".png", 3), (".png", 1), (".tif", 3), (".tif", 1), (".ppm", 3)])
def test_of_16_bits_the_upper_8_are_read(tmp_path, suffix, channels):
    path = tmp_path / f"a{suffix}"
    stored = DEEP if channels == 3 else DEEP[..., 0]
    assert cv2.imwrite(str(path), stored[..., ::-1] if channels == 3 else stored)
    expected = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) >> 8).astype(np.uint8)
    expected = expected[..., ::-1] if channels == 3 else np.dstack([expected] * 3)
    difference = np.abs(read_image(path).astype(int) - expected)
    assert difference.max() <= (1 if suffix == ".ppm" else 0)  # Pillow rounds PPM


def test_eight_bits_stored_in_sixteen_come_back_whole(tmp_path):
    path = save(tmp_path / "a.png", GREY.astype(np.uint16) * 257)
    assert_array_equal(read_image(path)[..., 1], GREY)
    assert_array_equal(read_mask(path, GREY.shape), GREY > 127)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_depths_without_a_white_are_refused(tmp_path, dtype):
    path = save(tmp_path / "a.tif", GREY.astype(dtype))
    for reader in (read_image, lambda file: read_mask(file, GREY.shape)):
        with pytest.raises(DataError, match="8 or 16 bits"):
            reader(path)


def test_cmyk_is_the_product_of_colour_and_black(tmp_path):
    ink = RNG.integers(0, 256, (9, 14, 4), np.uint8)
    path = tmp_path / "a.tif"
    Image.frombytes("CMYK", (14, 9), ink.tobytes()).save(path)
    colour, black = 255 - ink[..., :3].astype(float), 255 - ink[..., 3:].astype(float)
    assert_array_equal(read_image(path), np.floor(colour * black / 255 + 0.5))


def test_a_cmyk_photograph_looks_as_it_does_in_opencv(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(SMOOTH).convert("CMYK").save(path, quality=95)
    found = read_image(path).astype(int)
    assert np.abs(found - cv2.imread(str(path))[..., ::-1]).max() <= 2
    assert np.abs(found - SMOOTH).max() <= 12


@pytest.mark.parametrize("format_", ["PNG", "GIF", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, format_):
    first, second = (Image.fromarray(np.full((9, 14), level, np.uint8)) for level in (40, 200))
    path = tmp_path / "a.webp"
    path.write_bytes(encode(first, format_, save_all=True, append_images=[second, first]))
    assert_array_equal(read_image(path), np.full((9, 14, 3), 40))
    assert image_size(path) == (9, 14)


def test_a_progressive_photograph_is_read_like_a_baseline_one(tmp_path):
    baseline = save(tmp_path / "a.jpg", SMOOTH, quality=80)
    progressive = save(tmp_path / "b.jpg", SMOOTH, quality=80, progressive=True)
    assert baseline.read_bytes() != progressive.read_bytes()
    assert_array_equal(read_image(progressive), read_image(baseline))
    assert_array_equal(read_image(progressive), cv2.imread(str(progressive))[..., ::-1])


def test_colour_profiles_are_not_applied(tmp_path):
    path = save(tmp_path / "a.png", RGB, icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes())
    with Image.open(path) as image:
        assert image.info["icc_profile"]
    assert_array_equal(read_image(path), RGB)


@pytest.mark.parametrize("reader", [image_size, read_image, lambda path, **kw: read_mask(path, (9, 14), **kw)])
def test_bombs_are_refused_and_the_limit_is_an_argument(tmp_path, monkeypatch, reader):
    path = save(tmp_path / "a.png", RGB)
    with pytest.raises(DataError, match="126 pixels, more than 125"):
        reader(path, max_pixels=125)
    for limit in (100, 20):  # between Pillow's warning and its error, and beyond
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match="more than 19"):
            reader(path, max_pixels=19)
        reader(path, max_pixels=126)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_the_limit_is_pillows_unless_told_otherwise():
    assert MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_bombs_are_found_while_other_threads_read(tmp_path):
    small, large = save(tmp_path / "a.png", RGB), save(tmp_path / "b.png", np.zeros((100, 100), np.uint8))

    def read(number):
        if number % 3 == 0:
            return read_image(large, max_pixels=MAX_PIXELS * 2).shape
        if number % 3 == 1:
            return read_image(small).shape
        try:
            return image_size(large, max_pixels=9999)
        except DataError:
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(read, range(300)))
    assert found == [(100, 100, 3), (9, 14, 3), "refused"] * 100
    assert Image.MAX_IMAGE_PIXELS == MAX_PIXELS


@pytest.mark.parametrize("level", [1, 38, 127])
def test_masks_of_ones_are_refused_instead_of_read_as_empty(tmp_path, level):
    path = save(tmp_path / "m.png", (GREY > 200).astype(np.uint8) * np.uint8(level))
    with pytest.raises(DataError, match=f"brightest level is {level}; write manipulated pixels as 255"):
        read_mask(path, GREY.shape)


def test_an_empty_mask_is_a_mask(tmp_path):
    assert not read_mask(save(tmp_path / "m.png", np.zeros((9, 14), np.uint8)), (9, 14)).any()


def test_colour_masks_count_by_luma_and_without_their_transparency(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], np.uint8)
    luma = np.rint(colours @ np.array([0.299, 0.587, 0.114]))
    alpha = np.array([[0, 0, 255, 0]], np.uint8)
    path = save(tmp_path / "m.png", np.dstack([colours, alpha]))
    assert_array_equal(read_mask(path, (1, 4)), luma > 127)


def test_what_is_no_photograph_is_not_opened(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encode(RGB, "EPS"))
    with pytest.raises(DataError, match="in none of the formats"):
        read_image(path)


def test_arrays_can_be_written_to(tmp_path):
    assert read_image(save(tmp_path / "a.png", RGB)).flags.writeable


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("png", {}), ("jpg", {}), ("jpg", {"progressive": True}), ("webp", {}), ("bmp", {})],
)
def test_a_file_that_was_cut_off_is_told_without_the_pixels_being_asked_for(tmp_path, suffix, options):
    path = tmp_path / f"image.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(path, **options)
    content = path.read_bytes()
    assert image_size(path) == (60, 80)
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(DataError, match="cannot be read"):
        image_size(path)
    path.write_bytes(content + bytes(10_000))  # what follows a complete image does no harm
    assert image_size(path) == (60, 80)
