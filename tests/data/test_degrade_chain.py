"""Chains: their text, their order, and bytes that follow from the seed alone."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from dlprobe.data.degrade import (
    DEGRADATIONS,
    Blur,
    Chain,
    ColourJitter,
    Crop,
    CutOut,
    DoubleJpeg,
    Gamma,
    Jpeg,
    Limit,
    Noise,
    Resize,
    Webp,
    degrade,
    derive_seed,
)
from dlprobe.errors import DataError, RegistryError

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 256, (40, 56, 3), np.uint8)
REGIONS = RNG.choice(np.array([0, 1, 2, 255], np.uint8), (40, 56))

CANONICAL = [
    (Chain(), "clean"),
    (Chain((Jpeg(80), Noise(2.0))), "jpeg:quality=80,subsampling=4:2:0|noise:sigma=2"),
    (Chain((DoubleJpeg(60, 90, 3, 4, "4:4:4"),)), "double-jpeg:q1=60,q2=90,shift_y=3,shift_x=4,subsampling=4:4:4"),
    (Chain((Webp(75),)), "webp:quality=75"),
    (Chain((Resize(0.5),)), "resize:factor=0.5,filter=bicubic,back=no"),
    (Chain((Limit(1080),)), "limit:side=1080,filter=lanczos"),
    (Chain((Blur(1.5), Blur(kernel_px=7))), "blur:sigma=1.5|blur:kernel=7"),
    (Chain((Gamma(0.7),)), "gamma:exponent=0.7"),
    (Chain((ColourJitter(hue_turns=-0.1),)), "jitter:brightness=1,contrast=1,saturation=1,hue=-0.1"),
    (Chain((Crop(0.8),)), "crop:keep=0.8,y=0.5,x=0.5"),
    (Chain((CutOut(0.25, 0.0, 1.0),)), "cutout:side=0.25,y=0,x=1,level=127"),
]


@pytest.mark.parametrize(("chain", "text"), CANONICAL)
def test_a_chain_has_one_text_and_a_text_one_chain(chain, text):
    assert str(chain) == text
    assert Chain.parse(text) == chain


def test_every_kind_is_among_the_texts():
    assert {step.name for chain, _ in CANONICAL for step in chain.steps} == set(DEGRADATIONS)


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("jpeg:quality=80", "jpeg:quality=80,subsampling=4:2:0"),
        (" jpeg : quality = 80 | noise:sigma=2.50 ", None),
        ("jpeg:subsampling=4:4:4, quality=80 | noise:sigma=2.50", "jpeg:quality=80,subsampling=4:4:4|noise:sigma=2.5"),
        ("jitter", "jitter:brightness=1,contrast=1,saturation=1,hue=0"),
        ("noise:sigma=1e-1", "noise:sigma=0.1"),
        (" clean ", "clean"),
    ],
)
def test_what_people_write_becomes_canonical(written, canonical):
    if canonical is None:
        with pytest.raises(RegistryError, match="did you mean jpeg"):
            Chain.parse(written)
    else:
        assert str(Chain.parse(written)) == canonical
        assert str(Chain.parse(canonical)) == canonical


@given(
    st.lists(
        st.one_of(
            st.builds(Noise, st.floats(0, 255)),
            st.builds(Blur, st.floats(0, 100)),
            st.builds(Crop, st.floats(0.01, 1), st.floats(0, 1), st.floats(0, 1)),
            st.builds(DoubleJpeg, st.integers(1, 100), st.integers(1, 100), st.integers(0, 15), st.integers(0, 15)),
        ),
        max_size=4,
    )
)
@settings(deadline=None)
def test_any_chain_survives_its_text(steps):
    chain = Chain(tuple(steps))
    again = Chain.parse(str(chain))
    assert again == chain
    assert str(again) == str(chain)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("jpg:quality=80", RegistryError, "no degradation 'jpg'; did you mean jpeg"),
        ("", RegistryError, "no degradation ''"),
        ("noise:sigma=1|", RegistryError, "no degradation ''"),
        ("jpeg", DataError, "jpeg needs a value for quality, as in jpeg:quality="),
        ("jpeg:q=80", DataError, "jpeg has no q; it has quality, subsampling"),
        ("jpeg:quality_pct=80", DataError, "jpeg has no quality_pct"),
        ("jpeg:quality=80,quality=90", DataError, "write each value once"),
        ("jpeg:quality", DataError, "'quality' in 'jpeg:quality' cannot be read"),
        ("jpeg:quality=", DataError, "cannot be read"),
        ("jpeg:quality=80.5", DataError, "jpeg:quality=80.5 is not a whole number"),
        ("noise:sigma=two", DataError, "noise:sigma=two is not a number"),
        ("noise:sigma=nan", DataError, "is not a number"),
        ("noise:sigma=inf", DataError, "is not a number"),
        ("jpeg:quality=0", DataError, "must lie between 1 and 100"),
    ],
)
def test_texts_that_cannot_be_read_say_why(text, error, words):
    with pytest.raises(error, match=words) as caught:
        Chain.parse(text)
    assert "\n" not in str(caught.value)


def test_geometry_is_known_from_the_chain():
    assert Chain.parse("jpeg:quality=80|crop:keep=0.5").geometric
    assert not Chain.parse("jpeg:quality=80|noise:sigma=1|jitter").geometric
    assert not Chain().geometric


def test_steps_happen_in_their_order():
    found = degrade(PICTURE, REGIONS, "crop:keep=0.5,y=0,x=0|resize:factor=2,filter=nearest", 0)
    assert_array_equal(found[0], PICTURE[:20, :28].repeat(2, 0).repeat(2, 1))
    assert_array_equal(found[1], REGIONS[:20, :28].repeat(2, 0).repeat(2, 1))
    swapped = degrade(PICTURE, REGIONS, "gamma:exponent=2|cutout:side=1,level=100", 0)[0]
    assert not np.array_equal(swapped, degrade(PICTURE, REGIONS, "cutout:side=1,level=100|gamma:exponent=2", 0)[0])


def test_the_clean_chain_changes_nothing():
    found = degrade(PICTURE, REGIONS, "clean", 0)
    assert_array_equal(found[0], PICTURE)
    assert_array_equal(found[1], REGIONS)


def noise_of(chain, seed):
    grey = np.full((16, 16, 3), 128, np.uint8)
    return degrade(grey, np.zeros((16, 16), np.uint8), chain, seed)[0]


def test_the_seed_decides_and_nothing_else():
    assert_array_equal(noise_of("noise:sigma=9", 7), noise_of("noise:sigma=9", 7))
    assert not np.array_equal(noise_of("noise:sigma=9", 7), noise_of("noise:sigma=9", 8))
    np.random.default_rng(0).random(5)
    assert_array_equal(noise_of("noise:sigma=9", 7), noise_of("noise:sigma=9", 7))


def test_each_place_in_a_chain_has_noise_of_its_own():
    alone = noise_of("noise:sigma=9", 7)
    second = noise_of("gamma:exponent=1|noise:sigma=9", 7)
    assert not np.array_equal(alone, second)
    assert_array_equal(second, noise_of("noise:sigma=0|noise:sigma=9", 7))  # not of what came before it
    twice = noise_of("noise:sigma=9|noise:sigma=9", 7).astype(float) - 128
    assert twice.std() == pytest.approx(9 * np.sqrt(2), rel=0.1)


def test_seeds_follow_from_names_in_another_process_with_another_hash_seed():
    code = "from dlprobe.data.degrade import derive_seed; print(derive_seed(3, 'view', 'bücher/a.png', 2))"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "17"}
    )
    text = '{"seed":[3,"view","b\\u00fccher/a.png",2]}'
    expected = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
    assert int(run.stdout) == derive_seed(3, "view", "bücher/a.png", 2) == expected
    assert derive_seed(1, "1") != derive_seed("1", 1)
    assert derive_seed("ab", "c") != derive_seed("a", "bc")
    assert derive_seed(np.int64(3)) == derive_seed(3)


@pytest.mark.parametrize(
    ("pixels", "regions"),
    [
        (PICTURE, REGIONS[1:]),
        (PICTURE[..., 0], REGIONS),
        (PICTURE.astype(float), REGIONS),
        (PICTURE, REGIONS.astype(int)),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(pixels, regions):
    with pytest.raises(DataError, match=r"must be uint8 of shapes \(height, width, 3\)"):
        degrade(pixels, regions, "clean", 0)
