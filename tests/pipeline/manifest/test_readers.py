"""Every convention of annotation files, with the oddities that real ones have, becomes the same rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.errors import ManifestError
from pipeline.manifest.formats import detect
from pipeline.manifest.readers import (
    Annotations,
    read_hmdb51,
    read_kinetics,
    read_list,
    read_something,
    read_table,
    read_ucf101,
    source_video_of,
)
from pipeline.storage.files import StorageError


def rows(annotations: Annotations) -> list[dict[str, Any]]:
    found = pa.concat_tables(annotations.batches).to_pylist()
    return [{name: value for name, value in row.items() if value is not None} for row in found]


def take(found: Annotations | pa.Table) -> None:
    """Annotations are read as they are taken; a listing at once."""
    if isinstance(found, Annotations):
        rows(found)


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_kinetics_names_files_by_id_and_times(tmp_path: Path) -> None:
    """Ids that begin with - or look like numbers stay text; labels may be quoted and hold commas."""
    write(
        tmp_path / "train.csv",
        'label,youtube_id,time_start,time_end,split\n"petting animal (not cat)",-abc_1,3,13,train\n'
        '"a, b",007,1000,1010,train\n',
    )
    write(tmp_path / "val.csv", "label,youtube_id,time_start,time_end,split,is_cc\nyoga,1e5,0,10,validate,0\n")
    write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\n_x,20,30,test\n")
    found = {row["bare_id"]: row for row in rows(read_kinetics(str(tmp_path)))}
    assert found["-abc_1"]["stem"] == "-abc_1_000003_000013"
    assert found["-abc_1"]["label"] == "petting animal (not cat)"
    assert found["007"]["stem"] == "007_001000_001010"
    assert found["007"]["label"] == "a, b"
    assert found["1e5"]["split"] == "val"
    assert "label" not in found["_x"]
    assert found["_x"]["split"] == "test"
    assert {row["source_video"] for row in found.values()} == set(found)


def test_kinetics_without_ids_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "train.csv", "label,video\nyoga,a.mp4\n")
    with pytest.raises(ManifestError, match="youtube_id"):
        rows(read_kinetics(file))


def test_something_strips_the_placeholders_brackets(tmp_path: Path) -> None:
    """The class is the template without brackets; the list's order is that of the indices, not of the alphabet."""
    labels = {"Pushing something": "1", "Approaching something": "0", "Tearing something": "2"}
    write(tmp_path / "something-something-v2-labels.json", json.dumps(labels))
    entry = {
        "id": "78687",
        "label": "pushing cup",
        "template": "Pushing [something]",
        "placeholders": ["cup"],
    }
    write(tmp_path / "something-something-v2-train.json", json.dumps([entry]))
    write(
        tmp_path / "something-something-v2-validation.json",
        json.dumps([entry | {"id": "2", "template": "Tearing [something]"}]),
    )
    write(tmp_path / "something-something-v2-test.json", json.dumps([{"id": "3"}]))
    annotations = read_something(str(tmp_path))
    assert annotations.classes == ("Approaching something", "Pushing something", "Tearing something")
    assert [(row["stem"], row.get("label"), row["split"]) for row in rows(annotations)] == [
        ("78687", "Pushing something", "train"),
        ("2", "Tearing something", "val"),
        ("3", None, "test"),
    ]


def test_ucf101_takes_order_from_the_index_file(tmp_path: Path) -> None:
    write(tmp_path / "classInd.txt", "2 ApplyLipstick\n1 ApplyEyeMakeup\n10 Archery\n")
    write(
        tmp_path / "trainlist02.txt",
        "ApplyLipstick/v_ApplyLipstick_g08_c01.avi 2\r\nArchery/v_Archery_g08_c02.avi 10\n",
    )
    write(tmp_path / "testlist02.txt", "Archery/v_Archery_g01_c01.avi\n")
    annotations = read_ucf101(str(tmp_path), 2)
    assert annotations.classes == ("ApplyEyeMakeup", "ApplyLipstick", "Archery")
    found = rows(annotations)
    assert [(row["path"], row["label"], row["split"]) for row in found] == [
        ("ApplyLipstick/v_ApplyLipstick_g08_c01.avi", "ApplyLipstick", "train"),
        ("Archery/v_Archery_g08_c02.avi", "Archery", "train"),
        ("Archery/v_Archery_g01_c01.avi", "Archery", "test"),
    ]
    assert found[0]["source_video"] == "v_ApplyLipstick_g08"


def test_hmdb51_flags(tmp_path: Path) -> None:
    name = "Pippi_Michel_cartwheel_f_cm_np2_le_med_6.avi"
    write(tmp_path / "cartwheel_test_split1.txt", f"{name} 1 \nb c.avi 2 \nd.avi 0 \n")
    write(tmp_path / "wave_test_split1.txt", "e.avi 1 \n")
    write(tmp_path / "wave_test_split2.txt", "e.avi 2 \n")
    annotations = read_hmdb51(str(tmp_path), 1)
    assert annotations.classes == ("cartwheel", "wave")
    found = rows(annotations)
    assert [(row["path"], row["split"]) for row in found] == [
        (f"cartwheel/{name}", "train"),
        ("cartwheel/b c.avi", "test"),
        ("cartwheel/d.avi", "unused"),
        ("wave/e.avi", "train"),
    ]
    assert found[0]["source_video"] == "Pippi_Michel"


@pytest.mark.parametrize(
    ("line", "path", "label"),
    [
        ("some dir/a b.mp4 12", "some dir/a b.mp4", "12"),
        ("/data/x.webm,3", "/data/x.webm", "3"),
        ("v2/x.avi 0 120 7", "v2/x.avi", "7"),
        ("unlabelled.mp4 -1", "unlabelled.mp4", "-1"),
        ("alone.MKV", "alone.MKV", None),
        ('"quoted.mp4 5', '"quoted.mp4', "5"),
        ("a.mp4.mp4 1", "a.mp4.mp4", "1"),
        ("s3://bucket/a b.mp4 named_class", "s3://bucket/a b.mp4", "named_class"),
    ],
)
def test_lists_hold_paths_with_spaces(tmp_path: Path, line: str, path: str, label: str | None) -> None:
    found = rows(read_list(write(tmp_path / "train.csv", line + "\n\n")))
    assert [(row["path"], row.get("label"), row["split"]) for row in found] == [(path, label, "train")]


def test_a_line_that_is_no_list_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="this is prose"):
        rows(read_list(write(tmp_path / "train.txt", "a.mp4 1\nthis is prose\n")))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "csv.gz"])
def test_tables_with_the_usual_column_names(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"list.{suffix}"
    text = "Path,label,split\na.mp4,x,Validation\nb.mp4,,train\n"
    if suffix == "csv.gz":
        file.write_bytes(gzip.compress(text.encode()))
    elif suffix == "csv":
        file.write_text(text)
    else:
        pq.write_table(
            pa.table({"uri": ["a.mp4", "b.mp4"], "class": ["x", None], "subset": ["validation", "train"]}), file
        )
    found = rows(read_table(str(file)))
    assert found == [{"path": "a.mp4", "label": "x", "split": "val"}, {"path": "b.mp4", "split": "train"}]


@pytest.mark.parametrize(
    ("read", "name", "content", "error"),
    [
        (read_table, "a.csv", "name,label\nx,y\n", ManifestError),
        (read_table, "a.parquet", "no parquet", ManifestError),
        (read_something, "folder/a.txt", "", ManifestError),
    ],
)
def test_files_against_their_convention(
    tmp_path: Path, read: Callable[[str], Any], name: str, content: str, error: type[Exception]
) -> None:
    file = write(tmp_path / name, content)
    file = str(Path(file).parent) if "folder" in name else file
    with pytest.raises(error):
        take(read(file))


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        rows(read_table(str(tmp_path / "none.csv")))
    assert caught.value.missing


def test_source_videos_by_name() -> None:
    names = pa.chunked_array(
        [["/k/yoga/-a_b_000010_000020.mp4", "v_Archery_g01_c02.avi", "holiday_2021.mp4", "x_c01.mp4"]],
        pa.large_string(),
    )
    assert source_video_of(names).to_pylist() == ["-a_b", "v_Archery_g01", None, None]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_annotations_of_any_editor(tmp_path: Path, end: str, encoding: str) -> None:
    """The byte order mark and the line ends of other systems belong to no name, in every convention."""

    def saved(name: str, *lines: str) -> str:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((end.join(lines) + end).encode(encoding))
        return str(tmp_path / name)

    expected = [{"path": "é.mp4", "label": "x"}, {"path": "b.mp4", "label": "y"}]
    table = saved("list.csv", "path,label", "é.mp4,x", "b.mp4,y")
    assert detect(str(tmp_path), table) == "csv"
    assert rows(read_table(table)) == expected
    assert rows(read_list(saved("bare.txt", "é.mp4 x", "b.mp4 y"))) == expected
    kinetics = read_kinetics(saved("k.csv", "youtube_id,label,time_start,time_end", "é,x,0,10"))
    assert rows(kinetics)[0]["stem"] == "é_000000_000010"
    saved("s/labels.json", '{"Pushing é":', '"0"}')
    saved("s/train.json", "[", '{"id": "1", "template": "Pushing [é]"}]')
    something = read_something(str(tmp_path / "s"))
    assert (something.classes, rows(something)[0]["label"]) == (("Pushing é",), "Pushing é")
    saved("u/classInd.txt", "1 Archery")
    saved("u/trainlist01.txt", "Archery/v_é_g01_c01.avi 1")
    saved("u/testlist01.txt", "Archery/v_b_g02_c01.avi")
    assert [row["label"] for row in rows(read_ucf101(str(tmp_path / "u"), 1))] == ["Archery"] * 2
