"""The format's documentation is true: its code reads a cache, its tables list what is on the disk."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from dlprobe.cache import open_cache
from dlprobe.cache.layout import FIXED_ARRAYS, SCHEMA
from dlprobe.cache.places import Folder
from dlprobe.cache.records import read_block_record
from dlprobe.errors import CacheError

TEXT = (Path(__file__).parents[2] / "docs" / "cache-format.md").read_text(encoding="utf-8")


def test_the_code_in_the_documentation_reads_a_cache(whole):
    [code] = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    scope = {}
    exec(compile(code, "cache-format.md", "exec"), scope)  # noqa: S102 (our own page)
    cache = open_cache(whole)
    for block in range(cache.n_blocks):
        embeddings, coverage = scope["read_block"](whole, block)
        expected = cache.read(np.arange(4 * block, min(4 * block + 4, len(cache))))
        assert_array_equal(embeddings, expected.embeddings)
        assert_array_equal(coverage, expected.coverage)


def test_the_table_of_arrays(whole):
    rows = re.findall(r"^\| `(\w+)` \| ([\w, ]+) \| ([\w, ]+) \| (one block|whole) \| ", TEXT, flags=re.MULTILINE)
    assert [row[0] for row in rows] == ["embeddings", "scale", "cls", "coverage", "regions", "moments", *FIXED_ARRAYS]
    for name, axes, kind, chunk in rows:
        if name in {"scale", "cls"}:
            continue  # of int8 alone, and where asked for
        found = json.loads((whole / "features.zarr" / name / "zarr.json").read_text())
        assert found["dimension_names"] == axes.split(", ")
        assert found["data_type"] in re.split(", | or ", kind)
        assert found["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "."}}
        assert found["fill_value"] == 0
        shape = found["chunk_grid"]["configuration"]["chunk_shape"]
        assert shape == ([4, *found["shape"][1:]] if chunk == "one block" else found["shape"])


def test_the_attributes_and_the_records(whole):
    found = json.loads((whole / "features.zarr" / "zarr.json").read_text())["attributes"]
    assert found["schema"] == SCHEMA
    assert all(f"`{key}`" in TEXT for key in found)
    record = json.loads((whole / "records" / "000000.json").read_text())
    [example] = re.findall(r"```json\n(.*?)```", TEXT, flags=re.DOTALL)
    assert set(record) == set(json.loads(re.sub(r"\{\.\.\.\}", "{}", example)))


def test_a_record_with_a_new_key_is_read(copy, tmp_path):
    from dlprobe.spec import canonical_json, fingerprint

    path = copy / "records" / "000000.json"
    body = {**json.loads(path.read_text()), "colour": "green"}
    del body["checksum"]
    path.write_text(canonical_json({**body, "checksum": fingerprint(body)}))
    assert read_block_record(Folder(copy), 0).block == 0
    path.write_text(canonical_json({**body, "checksum": fingerprint({**body, "colour": "red"})}))
    with pytest.raises(CacheError, match="damaged"):
        read_block_record(Folder(copy), 0)
