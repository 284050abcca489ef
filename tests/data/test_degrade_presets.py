"""Presets: the published numbers, mixes that stay in their ranges, and views that any number of workers makes alike."""

import hashlib
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dlprobe.data.degrade import (
    PRESETS,
    Chain,
    CutOut,
    DoubleJpeg,
    Jpeg,
    Level,
    Noise,
    Preset,
    Resize,
    Stage,
    find_preset,
    view_sample,
)
from dlprobe.data.samples import Sample
from dlprobe.errors import DataError, RegistryError

RNG = np.random.default_rng(0)
SAMPLE = Sample(
    RNG.integers(0, 256, (42, 56, 3), np.uint8), RNG.choice(np.array([0, 1, 2], np.uint8), (42, 56)), "5" * 64
)

#: The published protocols, written out: name of the operation, its strengths, and what a strength is in the chain.
PUBLISHED = {
    "tgif": [
        ("jpeg", [80, 60], lambda s: f"jpeg:quality={s},subsampling=4:2:0"),
        ("webp", [80, 60], lambda s: f"webp:quality={s}"),
        ("up-cubic", [2, 4], lambda s: f"resize:factor={s},filter=cv-cubic,back=cv-area"),
        ("up-linear", [2, 4], lambda s: f"resize:factor={s},filter=cv-linear,back=cv-area"),
        ("up-nearest", [2, 4], lambda s: f"resize:factor={s},filter=cv-nearest,back=cv-area"),
        ("up-lanczos", [2, 4], lambda s: f"resize:factor={s},filter=cv-lanczos,back=cv-area"),
    ],
    "imdlbenco": [
        ("blur", [3, 7, 11, 15, 19, 23], lambda s: f"blur:kernel={s}"),
        ("noise-variance", [3, 7, 11, 15, 19, 23], lambda s: f"noise:sigma={s**0.5}"),
        ("jpeg", [50, 60, 70, 80, 90, 100], lambda s: f"jpeg:quality={s},subsampling=4:2:0"),
    ],
    "safire": [
        ("blur", [3, 7, 11, 15, 19], lambda s: f"blur:kernel={s}"),
        ("noise", [3, 7, 11, 15, 19, 23], lambda s: f"noise:sigma={s}"),
        ("jpeg", [50, 60, 70, 80, 90, 100], lambda s: f"jpeg:quality={s},subsampling=4:2:0"),
        ("gamma", [0.7, 0.85, 1, 1.15, 1.3], lambda s: f"gamma:exponent={s}"),
    ],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_protocols_have_their_published_numbers(name):
    expected = [("clean", 0, "clean")]
    expected += [(kind, s, text(s)) for kind, strengths, text in PUBLISHED[name] for s in strengths]
    assert [(level.name, level.strength, str(level.chain)) for level in PRESETS[name].levels] == expected


def test_noise_7_is_not_the_same_in_imdlbenco_and_safire():
    sigma = {
        name: next(
            level.chain.steps[0].sigma_levels
            for level in PRESETS[name].levels
            if level.name.startswith("noise") and level.strength == 7
        )
        for name in ("imdlbenco", "safire")
    }
    assert sigma == {"imdlbenco": pytest.approx(2.6457513), "safire": 7}


@pytest.mark.parametrize("name", list(PRESETS))
def test_each_ladder_begins_clean_has_no_level_twice_and_works(name):
    levels = PRESETS[name].levels
    assert levels[0] == Level("clean", 0, Chain())
    assert len({str(level.chain) for level in levels}) == len(levels)
    assert len({(level.name, level.strength) for level in levels}) == len(levels)
    assert PRESETS[name].source
    assert PRESETS[name].name == name


@pytest.mark.parametrize("name", ["dinolizer", "social"])
def test_our_own_numbers_are_said_to_be_ours(name):
    assert PRESETS[name].source.startswith("ours")


def draws(name, count=600):
    return [PRESETS[name].draw(0, view, "a.png") for view in range(1, count + 1)]


def test_the_dinolizer_mix_does_each_thing_as_often_as_it_says():
    chains = draws("dinolizer")
    share = {
        name: np.mean([any(step.name == name for step in chain.steps) for chain in chains])
        for name in ("resize", "blur", "jitter", "noise", "cutout", "jpeg", "double-jpeg", "webp")
    }
    expected = {"resize": 0.4, "blur": 0.25, "jitter": 0.25, "noise": 0.4, "cutout": 0.1}
    expected |= dict.fromkeys(("jpeg", "double-jpeg", "webp"), 0.8 / 3)
    assert share == pytest.approx(expected, abs=4 * 0.5 / np.sqrt(600))


def test_drawn_values_fill_their_ranges():
    steps = [step for chain in draws("dinolizer") for step in chain.steps]
    factors = [step.factor for step in steps if isinstance(step, Resize)]
    assert 0.5 <= min(factors) < 0.55
    assert 1.45 < max(factors) <= 1.5
    assert {step.filter for step in steps if isinstance(step, Resize)} == {"box", "bilinear", "bicubic", "lanczos"}
    assert {step.back for step in steps if isinstance(step, Resize)} == {"bicubic"}
    qualities = {step.quality_pct for step in steps if isinstance(step, Jpeg)}
    assert min(qualities) < 45
    assert max(qualities) > 95
    assert qualities <= set(range(40, 101))
    shifts = {step.shift_x_px for step in steps if isinstance(step, DoubleJpeg)}
    assert shifts == set(range(8))
    sigmas = [step.sigma_levels for step in steps if isinstance(step, Noise)]
    assert 0.5 <= min(sigmas) < 1
    assert 7.5 < max(sigmas) <= 8
    assert all(0 <= step.y_share <= 1 for step in steps if isinstance(step, CutOut))


def test_a_published_protocol_draws_from_its_ladder():
    drawn = {str(chain) for chain in draws("tgif", 300)}
    assert drawn == {str(level.chain) for level in PRESETS["tgif"].levels}


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_draw_follows_from_seed_view_and_image(name):
    def found(seed, key):
        return [str(PRESETS[name].draw(seed, view, key)) for view in range(1, 40)]

    assert found(0, "a.png") == found(0, "a.png")
    assert len(set(found(0, "a.png"))) > 4
    assert found(0, "a.png") != found(1, "a.png")
    assert found(0, "a.png") != found(0, "b.png")
    assert PRESETS[name].draw(0, 0, "a.png") == Chain()


def test_draws_are_those_of_the_first_release():
    assert str(PRESETS["dinolizer"].draw(0, 1, "a")) == "jpeg:quality=97,subsampling=4:2:0"
    assert str(PRESETS["dinolizer"].draw(0, 2, "a")) == (
        "resize:factor=0.613,filter=lanczos,back=bicubic|webp:quality=76"
    )


def test_a_negative_view_is_refused():
    with pytest.raises(DataError, match="view is -1"):
        PRESETS["social"].draw(0, -1, "a")


def test_the_fingerprint_covers_the_numbers_and_not_the_words():
    preset = PRESETS["dinolizer"]
    assert replace(preset, name="x", source="y").fingerprint == preset.fingerprint
    assert replace(preset, stages=preset.stages[1:]).fingerprint != preset.fingerprint
    assert replace(preset, ladder=preset.ladder[1:]).fingerprint != preset.fingerprint
    changed = (replace(preset.stages[0], probability=0.41), *preset.stages[1:])
    assert replace(preset, stages=changed).fingerprint != preset.fingerprint
    assert len({PRESETS[name].fingerprint for name in PRESETS}) == len(list(PRESETS))


def test_a_chain_can_stand_where_a_preset_does():
    preset = find_preset(" jpeg:quality=80 | noise:sigma=2 ")
    text = "jpeg:quality=80,subsampling=4:2:0|noise:sigma=2"
    assert preset.name == text
    assert [str(level.chain) for level in preset.levels] == ["clean", text]
    assert {str(preset.draw(0, view, "a")) for view in range(1, 9)} == {text}
    assert str(find_preset("jitter").draw(0, 1, "a")).startswith("jitter:")
    assert find_preset("clean").draw(0, 1, "a") == Chain()
    assert find_preset("tgif") is PRESETS["tgif"]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("dinoliser", RegistryError, "no preset of degradations 'dinoliser'; did you mean dinolizer"),
        ("jpg:quality=80", RegistryError, "no degradation 'jpg'"),
        ("jpeg:quality=800", DataError, "between 1 and 100"),
    ],
)
def test_unknown_presets_and_chains_are_refused(text, error, words):
    with pytest.raises(error, match=words):
        find_preset(text)


def test_view_0_is_the_sample_itself():
    assert view_sample(SAMPLE, "dinolizer", 0, 0, "a") is SAMPLE


@pytest.mark.parametrize("name", list(PRESETS))
def test_views_have_the_size_of_their_sample_and_no_new_classes(name):
    before = SAMPLE.pixels.copy(), SAMPLE.regions.copy()
    for view in range(1, 9):
        found = view_sample(SAMPLE, name, 3, view, "a")
        assert found.pixels.shape == SAMPLE.pixels.shape
        assert found.regions.shape == SAMPLE.regions.shape
        assert found.pixels.dtype == found.regions.dtype == np.uint8
        assert set(np.unique(found.regions)) <= {0, 1, 2, 255}
        assert found.sha256 == SAMPLE.sha256
    assert_array_equal(SAMPLE.pixels, before[0])
    assert_array_equal(SAMPLE.regions, before[1])


def test_a_crop_moves_the_regions_of_a_view_with_its_pixels():
    regions = np.zeros((42, 56), np.uint8)
    regions[:21, :28] = 2
    pixels = np.dstack([regions * np.uint8(100)] * 3)
    found = view_sample(Sample(pixels, regions, ""), "crop:keep=0.5,y=0,x=0.5", 0, 1, "a")
    assert_array_equal(found.regions, np.where(np.arange(56) < 28, 2, 0) * np.ones((42, 1)))
    assert np.mean((found.pixels[..., 0] > 100) == (found.regions == 2)) > 0.98


def test_two_views_of_one_chain_have_different_noise():
    views = [view_sample(SAMPLE, "noise:sigma=5", 0, view, key).pixels for view in (1, 2) for key in "ab"]
    for i, left in enumerate(views):
        assert not any(np.array_equal(left, right) for right in views[:i])


def digest(task):
    view, key = task
    found = view_sample(SAMPLE, "dinolizer", 5, view, key)
    return hashlib.sha256(found.pixels.tobytes() + found.regions.tobytes()).hexdigest()


def test_views_are_the_same_bytes_whatever_the_number_of_workers():
    tasks = [(view, key) for view in range(1, 5) for key in ("a.png", "b/c.png", "ü.jpg")]
    expected = dict(zip(tasks, map(digest, tasks), strict=True))
    assert len(set(expected.values())) == len(tasks)
    shuffled = random.Random(0).sample(tasks, len(tasks))
    with ThreadPoolExecutor(4) as pool:
        assert dict(zip(shuffled, pool.map(digest, shuffled), strict=True)) == expected


WORKER = """
import hashlib, sys
import numpy as np
from dlprobe.data.degrade import view_sample
from dlprobe.data.samples import Sample

pixels = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(42, 56, 4)
sample = Sample(np.ascontiguousarray(pixels[..., :3]), np.ascontiguousarray(pixels[..., 3]), "")
for view in (4, 1, 3):
    found = view_sample(sample, "dinolizer", 5, view, "a.png")
    print(hashlib.sha256(found.pixels.tobytes() + found.regions.tobytes()).hexdigest())
"""


def test_views_are_the_same_bytes_in_another_process():
    content = np.dstack([SAMPLE.pixels, SAMPLE.regions]).tobytes()
    env = {"PYTHONHASHSEED": "99", "OMP_NUM_THREADS": "3"}
    run = subprocess.run([sys.executable, "-c", WORKER], input=content, capture_output=True, check=True, env=env)
    assert run.stdout.decode().split() == [digest((view, "a.png")) for view in (4, 1, 3)]


def test_a_mix_of_ones_own():
    mine = Preset(
        "mine", "a test", (("clean", 0.0, "clean"),), (Stage(1.0, ("noise:sigma=1..3", "webp:quality=5..6")),)
    )
    drawn = {str(mine.draw(0, view, "a")) for view in range(1, 99)}
    assert drawn == {"noise:sigma=1", "noise:sigma=2", "noise:sigma=3", "webp:quality=5", "webp:quality=6"}
