"""The description of a cache says what is on the disk."""

import json

from dlprobe.cache import describe, open_cache


def test_a_complete_cache(whole, backbone):
    found = describe(whole)
    files = [path for path in whole.rglob("*") if path.is_file() and path.parent.name != "locks"]
    assert found["model_fingerprint"] == backbone.spec.fingerprint
    assert (found["images"], found["grid"], found["width"], found["dtype"]) == (10, "4x4", 6, "float16")
    assert (found["complete"], found["missing_blocks"], found["rejected_windows"]) == (True, 0, 0)
    assert found["windows"] == len(open_cache(whole))
    assert found["bytes"] == sum(path.stat().st_size for path in files)
    assert found["files"] == len(files)
    assert json.loads(json.dumps(found)) == found


def test_an_incomplete_cache(copy):
    (copy / "records" / "000001.json").unlink()
    found = describe(copy)
    assert (found["complete"], found["missing_blocks"]) == (False, 1)
