"""Identities: every field counts, JSON gives the same record back, differences have names."""

import hashlib
import json
from dataclasses import asdict, fields, replace

import pytest

from dlprobe.errors import IdentityError
from dlprobe.spec import CacheSpec, ModelSpec, Pins, canonical_json, differences, require_same, sha256_of_file

MODEL = ModelSpec(
    backbone="timm:vit_tiny",
    implementation="timm",
    weights_sha256="0" * 64,
    layers=(3, 11),
    norm=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    resize_rule="none",
    window_px=504,
    patch_px=14,
    width=768,
)
CACHE = CacheSpec(
    model=MODEL,
    tiling="spread",
    stride_px=504,
    views=3,
    degrade="social",
    seed=0,
    dtype="float16",
    block_windows=64,
    manifest_sha256="1" * 64,
)
PINS = Pins(engine="torch", precision="float32", device="cpu", batch_size=8)


def other(value):
    """Return a value of the same type that differs."""
    if isinstance(value, tuple):
        return (*value[:-1], other(value[-1]))
    if isinstance(value, ModelSpec):
        return replace(value, window_px=value.window_px + 14)
    if isinstance(value, bool | None):
        return not value
    return value + {int: 1, float: 1e-12, str: "x"}[type(value)]


@pytest.mark.parametrize("spec", [MODEL, CACHE], ids=["model", "cache"])
def test_each_field_changes_the_fingerprint_and_is_named(spec):
    for field in fields(spec):
        changed = replace(spec, **{field.name: other(getattr(spec, field.name))})
        assert changed.fingerprint != spec.fingerprint, field.name
        found = list(differences(asdict(spec), asdict(changed)))
        expected = "model.window_px" if field.name == "model" else field.name
        assert [line.partition(":")[0] for line in found] == [expected]


def test_the_fingerprint_is_the_sha256_of_sorted_compact_json():
    text = json.dumps(asdict(MODEL), sort_keys=True, separators=(",", ":"))
    assert MODEL.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    assert canonical_json({"b": (1, 2), "a": "é"}) == '{"a":"\\u00e9","b":[1,2]}'


def test_caches_without_class_tokens_are_what_they_were_before_there_was_a_choice():
    assert CACHE.fingerprint == "0daaf3098671b6ddde438389f6d71f4b0fa183663f7aa0c3ddc0a2c69cecf97e"
    assert "cls" not in CACHE.record()
    assert CacheSpec.from_dict(json.loads(canonical_json(CACHE.record()))) == CACHE
    with_cls = replace(CACHE, cls=True)
    assert with_cls.record() == {**CACHE.record(), "cls": True}
    assert CacheSpec.from_dict(json.loads(canonical_json(with_cls.record()))) == with_cls


def test_nan_has_no_identity():
    with pytest.raises(ValueError, match="Out of range float"):
        canonical_json({"a": float("nan")})


@pytest.mark.parametrize("spec", [MODEL, CACHE], ids=["model", "cache"])
def test_json_gives_the_same_record_back(spec):
    again = type(spec).from_dict(json.loads(canonical_json(asdict(spec))))
    assert again == spec
    assert again.fingerprint == spec.fingerprint
    assert hash(again) == hash(spec)


@pytest.mark.parametrize("spec", [MODEL, CACHE], ids=["model", "cache"])
def test_records_of_another_release_are_refused_by_name(spec):
    record = json.loads(canonical_json(asdict(spec)))
    with pytest.raises(IdentityError, match=r"unknown identity fields \['flavour'\]"):
        type(spec).from_dict({**record, "flavour": 1})
    for field in fields(spec):
        if field.name == "cls":
            continue
        with pytest.raises(IdentityError, match=rf"missing identity fields \['{field.name}'\]"):
            type(spec).from_dict({key: value for key, value in record.items() if key != field.name})


def test_differences_are_named_at_any_depth_and_lists_equal_tuples():
    left = {"a": 1, "model": {"layers": (1, 2), "x": {"y": 1}}, "same": (1,)}
    right = {"a": 2, "model": {"layers": [1, 3], "x": {"y": None}}, "same": [1], "new": "n" * 80}
    assert list(differences(left, right)) == [
        "a: 1 != 2",
        "model.layers: (1, 2) != [1, 3]",
        "model.x.y: 1 != None",
        f"new: None != {'n' * 16}...",
    ]


def test_require_same_names_what_differs_and_says_what_to_do():
    require_same(CACHE, replace(CACHE), "the caches", "never")
    with pytest.raises(IdentityError, match=r"the caches differ in model\.norm: True != False; pool others"):
        require_same(CACHE, replace(CACHE, model=replace(MODEL, norm=False)), "the caches", "pool others")
    with pytest.raises(IdentityError, match="batch_size: 8 != 9"):
        require_same(PINS, replace(PINS, batch_size=9), "pins", "use the old ones")


def test_the_grid_is_whole_patches():
    assert MODEL.grid == 36


def test_the_hash_of_a_file(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"abc" * 100_000)
    assert sha256_of_file(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
