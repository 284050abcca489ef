"""The manifest: what it accepts, what it refuses, and that both files give back the same table."""

import pandas as pd
import pytest

from dlprobe.data.manifest import COLUMNS, Manifest, crossing_sources, read_csv, source_groups
from dlprobe.errors import DataError, OutputError

ROWS = [
    {"path": "b,1.png", "mask": "m/b.png", "variant": "sp", "source_id": "coco:2", "split": "train", "width": 640},
    {"path": 'a "x".png', "variant": "real", "source_id": "coco:1", "split": "test", "width": 512, "height": 480},
]


def manifest(root, rows=ROWS):
    return Manifest.from_records(rows, root)


def from_csv(folder, text):
    path = folder / "m.csv"
    path.write_text(text, encoding="utf-8")
    return Manifest.read(path)


def test_rows_are_sorted_and_columns_complete(tmp_path):
    frame = manifest(tmp_path).frame
    assert tuple(frame.columns) == COLUMNS
    assert list(frame["path"]) == ['a "x".png', "b,1.png"]
    assert list(frame["height"]) == [480, 0]
    assert list(frame["mask"]) == ["", "m/b.png"]


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_writing_and_reading_gives_the_same_table_root_and_hash(tmp_path, name):
    written = manifest(tmp_path)
    written.write(tmp_path / name)
    back = Manifest.read(tmp_path / name)
    pd.testing.assert_frame_equal(back.frame, written.frame)
    assert back.sha256 == written.sha256
    assert back.root.resolve() == tmp_path.resolve()


def test_parquet_elsewhere_still_finds_its_root(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    manifest(images).write(tmp_path / "out" / "m.parquet")
    assert Manifest.read(tmp_path / "out" / "m.parquet").root.resolve() == images.resolve()
    assert Manifest.read(tmp_path / "out" / "m.parquet", root=tmp_path).root == tmp_path


def test_hash_ignores_order_and_root_but_not_content(tmp_path):
    one = manifest(tmp_path)
    assert manifest(tmp_path / "else", ROWS[::-1]).sha256 == one.sha256
    for name, value in [("variant", "fr"), ("width", 1), ("donor_id", "x"), ("split", "val")]:
        assert manifest(tmp_path, [{**ROWS[0], name: value}, ROWS[1]]).sha256 != one.sha256


def test_csv_outside_the_root_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match=r"must lie in its root.*Parquet"):
        manifest(tmp_path).write(tmp_path / "else" / "m.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_what_dlprobe_did_not_write_is_not_replaced(tmp_path, name):
    table = manifest(tmp_path).frame.assign(remark="mine")
    table.to_parquet(tmp_path / name) if name.endswith("parquet") else table.to_csv(tmp_path / name, index=False)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(OutputError, match="was not written by dlprobe"):
        manifest(tmp_path).write(tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(OutputError, match="was not written by dlprobe"):
        manifest(tmp_path).write(tmp_path / name)
    (tmp_path / name).unlink()
    manifest(tmp_path).write(tmp_path / name)
    manifest(tmp_path, ROWS[:1]).write(tmp_path / name)
    assert len(Manifest.read(tmp_path / name)) == 1


def test_a_manifest_has_the_ending_of_its_format(tmp_path):
    with pytest.raises(DataError, match=r"neither in \.parquet nor in \.csv; name the manifest such as m\.parquet"):
        manifest(tmp_path).write(tmp_path / "m.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_refused(tmp_path):
    (tmp_path / "m.parquet").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        manifest(tmp_path).write(tmp_path / "m.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["m.parquet"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": ""}, "1 rows without path"),
        ({"variant": ""}, "1 rows without variant"),
        ({"source_id": None}, "1 rows without source_id"),
        ({"variant": "spliced"}, "has the variant 'spliced'; write one of real, ae, aesp, sp, fr"),
        ({"split": "validation"}, "has the split 'validation'; write one of train, val, test"),
        ({"path": 'a "x".png'}, "stands twice"),
        ({"width": 512.5}, "the width '512.5'; write whole pixels"),
        ({"width": "inf"}, "the width 'inf'"),
        ({"width": "many"}, "the width 'many'"),
        ({"height": -1}, "the height '-1'"),
        ({"path": "a\rb.png"}, "control character"),
        ({"mask": "m\udce9.png"}, "no UTF-8"),
        ({"mask": "", "mask_reading": "inverted"}, "b,1.png has the mask_reading 'inverted' and no mask"),
    ],
)
def test_bad_rows_are_refused_in_words(tmp_path, change, words):
    with pytest.raises(DataError, match=words):
        manifest(tmp_path, [{**ROWS[0], **change}, ROWS[1]])


@pytest.mark.parametrize("column", ["path", "variant", "source_id"])
def test_a_missing_column_is_named(tmp_path, column):
    with pytest.raises(DataError, match=f"lacks the column {column};"):
        manifest(tmp_path, [{k: v for k, v in ROWS[0].items() if k != column}])


def test_unknown_values_of_any_column_type_read_as_empty(tmp_path):
    frame = pd.DataFrame(
        {
            "path": ["a", "b"],
            "variant": pd.Categorical(["real", "real"]),
            "source_id": [1, 2],
            "donor_id": [1.5, None],
            "split": pd.Categorical(["train", None]),
            "width": [float("nan"), 512.0],
            "height": [None, None],
        }
    )
    table = Manifest(frame, tmp_path).frame
    assert list(table["source_id"]) == ["1", "2"]
    assert list(table["donor_id"]) == ["1.5", ""]
    assert list(table["split"]) == ["train", ""]
    assert list(table["width"]) == [0, 512]
    assert list(table["height"]) == [0, 0]


def test_csv_texts_stay_texts(tmp_path):
    frame = from_csv(
        tmp_path, "path,variant,source_id,generator,width\n007,real,NA,null,\n1e3,real,0123,nan,12\n"
    ).frame
    assert list(frame["path"]) == ["007", "1e3"]
    assert list(frame["source_id"]) == ["NA", "0123"]
    assert list(frame["generator"]) == ["null", "nan"]
    assert list(frame["width"]) == [0, 12]


def test_csv_with_byte_order_mark_and_short_rows(tmp_path):
    frame = from_csv(tmp_path, "\ufeffpath,variant,source_id,split\na.png,real,x\n").frame
    assert list(frame.loc[0, ["path", "split"]]) == ["a.png", ""]


@pytest.mark.parametrize(
    "text",
    ["path,variant,source_id\na.png,real,x,\n", "path,variant,source_id\na.png,b.png,real,x\n"],
)
def test_surplus_fields_do_not_shift_columns(tmp_path, text):
    with pytest.raises(DataError, match="more fields than its header names"):
        from_csv(tmp_path, text)


@pytest.mark.parametrize("content", [b"", b"path\xe9,b\n\xff\xfe", b"a,b\n1,2\n1,2,3\n"])
def test_what_is_no_csv_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "m.csv").write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as CSV") as caught:
        read_csv(tmp_path / "m.csv")
    assert "\n" not in str(caught.value)


def test_what_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "m.parquet").write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        Manifest.read(tmp_path / "m.parquet")
    with pytest.raises(DataError, match="no manifest at"):
        Manifest.read(tmp_path / "other.parquet")


def test_select_keeps_rows_and_root(tmp_path):
    whole = manifest(tmp_path)
    part = whole.select(whole.frame["variant"] == "sp")
    assert list(part.frame["path"]) == ["b,1.png"]
    assert part.root == whole.root
    assert len(whole.select(whole.frame["variant"] == "ae")) == 0


def test_donors_join_sources_into_groups():
    frame = pd.DataFrame(
        {"source_id": ["d", "b", "c", "e"], "donor_id": ["c", "", "b", ""]},
        index=[5, 6, 7, 8],
    )
    groups = source_groups(frame)
    assert list(groups) == ["b", "b", "b", "e"]
    assert list(groups.index) == [5, 6, 7, 8]


@pytest.mark.parametrize(
    ("rows", "crossing"),
    [
        ([("a", "", "train"), ("a", "", "test")], ["a"]),
        ([("a", "", "train"), ("b", "", "test")], []),
        ([("a", "b", "train"), ("b", "", "test")], ["a"]),
        ([("a", "", "train"), ("a", "", "")], []),
        ([("a", "", ""), ("a", "", "")], []),
        ([("a", "z", "train"), ("b", "z", "val")], ["a"]),
    ],
)
def test_crossing_sources(rows, crossing):
    frame = pd.DataFrame(rows, columns=["source_id", "donor_id", "split"])
    assert crossing_sources(frame) == crossing
