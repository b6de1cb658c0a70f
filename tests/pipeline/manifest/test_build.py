"""Manifests of whole collections: what is found, labelled, split, and what is left out with which reason."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.build import Manifest, read_manifest, shuffled_order
from pipeline.manifest.errors import ManifestError
from pipeline.manifest.formats import ManifestConfig
from pipeline.storage.files import LISTING_SCHEMA, StorageError


def make(root: Path, *files: str) -> str:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(b"x")
    return str(root)


def found(manifest: Manifest, root: Path) -> dict[str, tuple[str | None, str]]:
    """Path below the root → label and split."""
    rows = manifest.rows.to_pylist()
    return {str(Path(row["uri"]).relative_to(root)): (row["label"], row["split"]) for row in rows}


def reasons(manifest: Manifest) -> dict[str, str]:
    return {row["uri"].rpartition("/")[2]: row["reason"] for row in manifest.rejected.to_pylist()}


def test_folder_of_classes(tmp_path: Path) -> None:
    make(tmp_path, *(f"{label}/{n}.mp4" for label in ("walk", "run") for n in range(10)), "walk/notes.txt", "readme.md")
    manifest = read_manifest(str(tmp_path), ManifestConfig(), seed=0)
    assert manifest.classes == ("run", "walk")
    assert manifest.convention == "folder"
    assert manifest.skipped == {".md": 1, ".txt": 1}
    assert Counter(found(manifest, tmp_path).values()) == {
        ("walk", "train"): 9,
        ("walk", "val"): 1,
        ("run", "train"): 9,
        ("run", "val"): 1,
    }
    assert all(row["size"] == 1 and row["content_version"] for row in manifest.rows.to_pylist())


def test_split_folders_above_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "train/a/1.mp4", "train/b/2.webm", "validation/a/3.avi", "test/b/4.mkv")
    manifest = read_manifest(str(tmp_path), ManifestConfig(), seed=0)
    assert found(manifest, tmp_path) == {
        "train/a/1.mp4": ("a", "train"),
        "train/b/2.webm": ("b", "train"),
        "validation/a/3.avi": ("a", "val"),
        "test/b/4.mkv": ("b", "test"),
    }


@pytest.mark.parametrize("files", [("1.mp4", "2.mp4"), ("only/1.mp4", "only/2.mp4"), ("1.mp4", "a/2.mp4", "b/3.mp4")])
def test_bare_folders_have_no_labels(tmp_path: Path, files: tuple[str, ...]) -> None:
    manifest = read_manifest(make(tmp_path, *files), ManifestConfig(), seed=0)
    assert manifest.classes == ()
    assert set(found(manifest, tmp_path).values()) == {(None, "train")}
    assert len(manifest.rows) == len(files)


def test_class_folders_that_were_asked_for_survive_a_stray_file(tmp_path: Path) -> None:
    make(tmp_path, "1.mp4", "a/2.mp4", "b/3.mp4")
    manifest = read_manifest(str(tmp_path), ManifestConfig(convention="folder", val_share=0.0), seed=0)
    assert manifest.classes == ("a", "b")
    assert sorted(label or "" for label, _ in found(manifest, tmp_path).values()) == ["", "a", "b"]


def test_convention_bare_ignores_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "a/1.mp4", "b/2.mp4")
    assert read_manifest(str(tmp_path), ManifestConfig(convention="bare"), seed=0).classes == ()


def test_the_sources_own_csv_labels_some_and_takes_the_others(tmp_path: Path) -> None:
    make(tmp_path, "x/1.mp4", "x/2.mp4", "y/3.mp4")
    (tmp_path / "annotations.csv").write_text("path,label\nx/1.mp4,sit\nx/gone.mp4,sit\nx/1.mp4,stand\n")
    manifest = read_manifest(str(tmp_path), ManifestConfig(val_share=0), seed=0)
    assert found(manifest, tmp_path) == {
        "x/1.mp4": ("sit", "train"),
        "x/2.mp4": (None, "train"),
        "y/3.mp4": (None, "train"),
    }
    assert reasons(manifest) == {"gone.mp4": "missing", "1.mp4": "duplicate"}
    assert manifest.classes == ("sit", "stand")
    listed = read_manifest(str(tmp_path), ManifestConfig(unlisted=False), seed=0)
    assert len(listed.rows) == 2


@pytest.mark.parametrize("name", ["a b.mp4", "café.mp4"])
def test_file_uris_are_the_files_that_a_listing_finds(tmp_path: Path, name: str) -> None:
    make(tmp_path, name, "other.mp4")
    (tmp_path / "annotations.csv").write_text(f"path,label\n{(tmp_path / name).as_uri()},sit\n")
    for source in (str(tmp_path), tmp_path.as_uri()):
        manifest = read_manifest(source, ManifestConfig(val_share=0), seed=0)
        assert found(manifest, tmp_path) == {name: ("sit", "train"), "other.mp4": (None, "train")}
        assert reasons(manifest) == {}


def test_a_file_uri_as_source_has_class_folders(tmp_path: Path) -> None:
    make(tmp_path, "a/1.mp4", "b/2.mp4")
    assert read_manifest(tmp_path.as_uri(), ManifestConfig(), seed=0).classes == ("a", "b")


@pytest.mark.parametrize("header", ["path,label", "uri,label"])
def test_a_csv_as_spreadsheets_write_it(tmp_path: Path, header: str) -> None:
    """With a byte order mark, quotes and Windows line ends."""
    make(tmp_path, "1.mp4", "2.mp4")
    content = header + '\r\n"1.mp4","sit, down"\r\n2.mp4,stand\r\n'
    (tmp_path / "list.csv").write_bytes(content.encode("utf-8-sig"))
    manifest = read_manifest(str(tmp_path / "list.csv"), ManifestConfig(val_share=0), seed=0)
    assert manifest.convention == "csv"
    assert found(manifest, tmp_path) == {"1.mp4": ("sit, down", "train"), "2.mp4": ("stand", "train")}


def test_a_manifest_elsewhere_is_not_looked_up(tmp_path: Path) -> None:
    """Ten million paths on object storage are not looked up one by one: the video is found missing when opened."""
    (tmp_path / "list.csv").write_text("path,label\na.mp4,x\ns3://bucket/b.mp4,x\n/c.mp4,y\n")
    manifest = read_manifest(str(tmp_path / "list.csv"), ManifestConfig(), seed=0)
    assert [row["uri"] for row in manifest.rows.to_pylist()] == [f"{tmp_path}/a.mp4", "s3://bucket/b.mp4", "/c.mp4"]
    assert manifest.rows["content_version"].null_count == 3


def test_a_class_list_refuses_other_labels_and_keeps_its_order(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\na.mp4,jump\nb.mp4,crawl\n")
    (tmp_path / "classes.txt").write_text("walk\njump\n")
    config = ManifestConfig(classes=str(tmp_path / "classes.txt"))
    manifest = read_manifest(str(tmp_path / "list.csv"), config, seed=0)
    assert manifest.classes == ("walk", "jump")
    assert reasons(manifest) == {"b.mp4": "unknown_label"}


def test_kinetics_in_any_layout(tmp_path: Path) -> None:
    """Class folders, flat and bare ids; a partial download keeps the full class list."""
    make(tmp_path / "v", "yoga/-a_000001_000011.mp4", "b_000002_000012.mkv", "bare.mp4", "unasked.mp4")
    (tmp_path / "train.csv").write_text(
        "label,youtube_id,time_start,time_end,split\n"
        "yoga,-a,1,11,train\nzumba,b,2,12,train\narchery,bare,3,13,train\nabseiling,gone,4,14,train\n"
    )
    config = ManifestConfig(annotations=str(tmp_path / "train.csv"))
    manifest = read_manifest(str(tmp_path / "v"), config, seed=0)
    assert manifest.convention == "kinetics"
    assert manifest.classes == ("abseiling", "archery", "yoga", "zumba")
    assert found(manifest, tmp_path / "v") == {
        "yoga/-a_000001_000011.mp4": ("yoga", "train"),
        "b_000002_000012.mkv": ("zumba", "train"),
        "bare.mp4": ("archery", "train"),
    }
    assert reasons(manifest) == {"gone_000004_000014": "missing"}


@pytest.mark.parametrize(("given", "expected"), [(None, ("0", "1", "2")), ("names", ("walk", "run", "sit"))])
def test_numbered_lists(tmp_path: Path, given: str | None, expected: tuple[str, ...]) -> None:
    (tmp_path / "train.csv").write_text("a b.mp4 2\nc.mp4 -1\nd.mp4 0\n")
    (tmp_path / "val.csv").write_text("e.mp4 1\n")
    (tmp_path / "names").write_text("walk\nrun\nsit\n")
    classes = str(tmp_path / given) if given else None
    manifest = read_manifest(str(tmp_path), ManifestConfig(annotations=str(tmp_path), classes=classes), seed=0)
    assert manifest.classes == expected
    labels = {name: label for name, (label, _) in found(manifest, tmp_path).items()}
    assert labels == {"a b.mp4": expected[2], "c.mp4": None, "d.mp4": expected[0], "e.mp4": expected[1]}


def test_an_index_beyond_the_class_list_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a.mp4 0\nb.mp4 7\n")
    (tmp_path / "names").write_text("walk\n")
    config = ManifestConfig(annotations=str(tmp_path / "train.csv"), classes=str(tmp_path / "names"))
    assert reasons(read_manifest(str(tmp_path), config, seed=0)) == {"b.mp4": "unknown_label"}


def test_conventions_are_told_apart(tmp_path: Path) -> None:
    make(tmp_path / "videos", "c/v_c_g01_c01.avi", "7.webm")
    folders = {
        "ucf101": {"classInd.txt": "1 c\n", "trainlist01.txt": "c/v_c_g01_c01.avi 1\n", "testlist01.txt": "c/x.avi\n"},
        "hmdb51": {"c_test_split1.txt": "v_c_g01_c01.avi 1\nnot_used.avi 0\n"},
        "ssv2": {
            "labels.json": '{"Pushing something": "0"}',
            "train.json": '[{"id":"7","template":"Pushing [something]"}]',
        },
    }
    for convention, files in folders.items():
        for name, content in files.items():
            make(tmp_path / convention, name)
            (tmp_path / convention / name).write_text(content)
        config = ManifestConfig(annotations=str(tmp_path / convention))
        manifest = read_manifest(str(tmp_path / "videos"), config, seed=0)
        assert manifest.convention == convention
        assert len(manifest.rows) >= 1
    assert (
        "unused_in_split"
        in reasons(read_manifest(str(tmp_path), ManifestConfig(annotations=str(tmp_path / "hmdb51")), seed=0)).values()
    )


def test_an_inventory_is_a_listing(tmp_path: Path) -> None:
    table = pa.table({"bucket": ["b"] * 3, "key": ["v/walk/1.mp4", "v/run/2.mp4", "other/3.mp4"], "size": [5, 6, 7]})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "p.parquet")
    content: dict[str, Any] = {"destinationBucket": "arn:aws:s3:::l", "fileFormat": "Parquet", "fileSchema": "m"}
    (tmp_path / "manifest.json").write_text(json.dumps(content | {"files": [{"key": "data/p.parquet"}]}))
    # Class folders are read below the source, which needs no access to the bucket.
    config = ManifestConfig(annotations=str(tmp_path / "manifest.json"), convention="inventory")
    manifest = read_manifest("s3://b/v", config, seed=0)
    assert {row["uri"]: row["size"] for row in manifest.rows.to_pylist()} == {
        "s3://b/v/walk/1.mp4": 5,
        "s3://b/v/run/2.mp4": 6,
    }
    assert manifest.classes == ("run", "walk")


def test_splits_follow_source_videos_and_stay(tmp_path: Path) -> None:
    clips = [
        f"{label}/{video}{label}_{start:06d}_{start + 10:06d}.mp4"
        for label in "ab"
        for video in range(20)
        for start in (0, 10, 20)
    ]
    make(tmp_path, *clips)
    manifest = read_manifest(str(tmp_path), ManifestConfig(val_share=0.25), seed=0)
    splits = {name: split for name, (_, split) in found(manifest, tmp_path).items()}
    assert Counter(splits.values()) == {"train": 90, "val": 30}
    for clip in clips:
        assert (
            splits[clip]
            == splits[clip.replace("_000010_000020", "_000000_000010").replace("_000020_000030", "_000000_000010")]
        )
    known = {row["uri"]: row["split"] for row in manifest.rows.to_pylist()}
    make(tmp_path, *(f"a/{video}new.mp4" for video in range(40)), "a/0a_000030_000040.mp4")
    table = pa.table({"uri": list(known), "split": list(known.values())})
    grown = read_manifest(str(tmp_path), ManifestConfig(val_share=0.25), seed=0, known_splits=table)
    again = {row["uri"]: row["split"] for row in grown.rows.to_pylist()}
    assert {uri: again[uri] for uri in known} == known
    assert again[f"{tmp_path}/a/0a_000030_000040.mp4"] == known[f"{tmp_path}/a/0a_000000_000010.mp4"]


def test_a_prefix_is_listed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of objects are never Python objects all at once (30,000 rows as tuples: 7.4 MB in all, in parts 4.2)."""
    names = ((f"s3://bucket/{'ab'[n % 2]}/{n:06d}.mp4", n, n, f"tag{n}") for n in range(30_000))
    monkeypatch.setattr("pipeline.storage.s3.list_objects", lambda *_, **__: names)
    monkeypatch.setattr("pipeline.storage.files.LISTED_AT_ONCE", 1000)
    tracemalloc.start()
    manifest = read_manifest("s3://bucket", ManifestConfig(convention="folder"), seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(manifest.rows), manifest.classes) == (30_000, ("a", "b"))
    assert peak < 6e6


def test_order_hangs_on_the_seed_and_not_on_the_listing(tmp_path: Path) -> None:
    make(tmp_path, *(f"{number:03d}.mp4" for number in range(200)))
    rows = read_manifest(str(tmp_path), ManifestConfig(), seed=0).rows
    shuffled = rows.take(shuffled_order(rows, 0))["uri"].to_pylist()
    turned = rows.take(list(reversed(range(200))))
    assert turned.take(shuffled_order(turned, 0))["uri"].to_pylist() == shuffled
    assert rows.take(shuffled_order(rows, 1))["uri"].to_pylist() != shuffled
    assert sorted(shuffled) != shuffled


KINETICS = "label,youtube_id,time_start,time_end,split\nyoga,abc,,10,train\n"
GOOD = {"labels.json": '{"a": "0"}', "train.json": '[{"id": "1", "template": "a"}]'}


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"train.csv": KINETICS}, "train.csv"),
        (GOOD | {"labels.json": '{"a": "0'}, "labels.json"),
        (GOOD | {"labels.json": '{"a": "first"}'}, "labels.json"),
        (GOOD | {"labels.json": '["a"]'}, "labels.json"),
        (GOOD | {"train.json": '[{"id": "1", "templ'}, "train.json"),
        (GOOD | {"train.json": "[1]"}, "train.json"),
        ({"manifest.json": '{"fileSchema": '}, "manifest.json"),
    ],
)
def test_malformed_annotations_are_named(files: dict[str, str], named: str, tmp_path: Path) -> None:
    folder = tmp_path / "annotations"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    annotations = folder if files.keys() == GOOD.keys() else folder / named
    with pytest.raises(ManifestError, match=named):
        read_manifest(make(tmp_path, "1.mp4"), ManifestConfig(annotations=str(annotations)), seed=0)


def test_a_missing_source_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        read_manifest(str(tmp_path / "nowhere"), ManifestConfig(), seed=0)


@pytest.mark.clips
def test_the_real_clips(real_clips: Path) -> None:
    manifest = read_manifest(str(real_clips), ManifestConfig(), seed=0)
    assert len(manifest.rows) == 134
    assert len(manifest.rejected) == 0
    assert len(manifest.classes) == 36
    assert manifest.rows["label"].null_count == 134 - 49


@pytest.mark.parametrize("form", ["list.csv", "header.csv", "floats.csv", "table.parquet"])
def test_number_labels_are_indices_in_numeric_order_and_minus_one_is_no_label(tmp_path: Path, form: str) -> None:
    numbers = [*range(12), -1]
    head, ending = ("" if form == "list.csv" else "path,label\n"), (".0" if form == "floats.csv" else "")
    if form.endswith(".csv"):
        (tmp_path / form).write_text(head + "".join(f"a{index}.mp4,{index}{ending}\n" for index in numbers))
    else:
        pq.write_table(pa.table({"path": [f"a{index}.mp4" for index in numbers], "label": numbers}), tmp_path / form)
    manifest = read_manifest(str(tmp_path / form), ManifestConfig(val_share=0), seed=0)
    assert manifest.classes == tuple(str(index) for index in range(12))
    labels = {Path(row["uri"]).stem: row["label"] for row in manifest.rows.to_pylist()}
    assert labels == {**{f"a{index}": str(index) for index in range(12)}, "a-1": None}


@pytest.mark.parametrize("head", ["", "path,label\n"])
@pytest.mark.parametrize(
    ("labels", "listed", "classes", "expected"),
    [
        (["2", "0", "-1"], ["x", "y", "z"], ["x", "y", "z"], ["z", "x", None]),
        (["2", "3", "-1"], ["1", "2", "3"], ["1", "2", "3"], ["2", "3", None]),  # names of the list, not indices
        (["3", "-1", "-1"], None, ["0", "1", "2", "3"], ["3", None, None]),
        (["run", "-1", "5"], None, ["5", "run"], ["run", None, "5"]),
        (["007", "010", "9"], None, ["007", "9", "010"], ["007", "010", "9"]),
        (["20230101", "9", "20230102"], None, ["9", "20230101", "20230102"], ["20230101", "9", "20230102"]),
    ],
)
def test_number_labels_with_lists_and_names(
    tmp_path: Path, head: str, labels: list[str], listed: list[str] | None, classes: list[str], expected: list[str]
) -> None:
    (tmp_path / "list.csv").write_text(head + "".join(f"{n}.mp4,{label}\n" for n, label in enumerate(labels)))
    (tmp_path / "classes.txt").write_text("\n".join(listed or []))
    config = ManifestConfig(val_share=0, classes=str(tmp_path / "classes.txt") if listed else None)
    manifest = read_manifest(str(tmp_path / "list.csv"), config, seed=0)
    assert manifest.classes == tuple(classes)
    assert [row["label"] for row in manifest.rows.to_pylist()] == expected


def test_class_folders_that_are_numbers_keep_their_order_and_forms_of_a_name_are_one_class(tmp_path: Path) -> None:
    make(tmp_path / "numbers", *(f"{number}/a.mp4" for number in range(12)))
    assert read_manifest(str(tmp_path / "numbers"), ManifestConfig(), seed=0).classes == tuple(map(str, range(12)))
    (tmp_path / "list.csv").write_text("path,label\na.mp4,caf\u00e9\nb.mp4,cafe\u0301\n")
    assert read_manifest(str(tmp_path / "list.csv"), ManifestConfig(), seed=0).classes == ("caf\u00e9",)


def test_a_path_finds_its_file_in_every_form(tmp_path: Path) -> None:
    make(tmp_path, "a.mp4", "Sub/B c.mp4", "caf\u00e9.mp4", "x.mp4", "X.mp4", "other.mp4")
    written = ("./a.mp4", " sub/b C.MP4 ", "cafe\u0301.mp4", "x.mp4", "Sub/../Sub//B c.mp4", "no.mp4")
    (tmp_path / "annotations.csv").write_text("path,label\n" + "".join(f'"{path}",l\n' for path in written))
    manifest = read_manifest(str(tmp_path), ManifestConfig(val_share=0), seed=0)
    labelled = {name for name, (label, _) in found(manifest, tmp_path).items() if label}
    assert labelled == {"a.mp4", "Sub/B c.mp4", "caf\u00e9.mp4", "x.mp4"}
    assert set(found(manifest, tmp_path)) == labelled | {"X.mp4", "other.mp4"}
    assert reasons(manifest) == {"no.mp4": "missing", "B c.mp4": "duplicate"}


def test_a_path_that_several_files_are_forms_of_is_rejected_with_their_names(tmp_path: Path) -> None:
    make(tmp_path, "x.mp4", "X.mp4", "caf\u00e9.mp4", "cafe\u0301.mp4")
    (tmp_path / "annotations.csv").write_text("path,label\n./x.MP4,l\nCaf\u00e9.mp4,l\ncafe\u0301.mp4,l\n")
    manifest = read_manifest(str(tmp_path), ManifestConfig(val_share=0), seed=0)
    rejected = {row["uri"]: (row["reason"], row["message"]) for row in manifest.rejected.to_pylist()}
    assert {reason for reason, _ in rejected.values()} == {"ambiguous"}
    assert all(f"{tmp_path}/{name}" in rejected["./x.MP4"][1] for name in ("x.mp4", "X.mp4"))
    assert all(f"{tmp_path}/{name}" in rejected["Caf\u00e9.mp4"][1] for name in ("caf\u00e9.mp4", "cafe\u0301.mp4"))
    assert found(manifest, tmp_path)["cafe\u0301.mp4"] == ("l", "train")


def test_a_list_elsewhere_is_tidied_only(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n./a.mp4\na.mp4\n b/../c.mp4 \ns3://bucket/a//./b.mp4\n")
    manifest = read_manifest(str(tmp_path / "list.csv"), ManifestConfig(), seed=0)
    uris = [f"{tmp_path}/a.mp4", f"{tmp_path}/c.mp4", "s3://bucket/a//./b.mp4"]
    assert manifest.rows["uri"].to_pylist() == uris
    assert reasons(manifest) == {"a.mp4": "duplicate"}


@pytest.mark.parametrize("names", [50_000, 1])
def test_many_ambiguous_paths_take_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: int) -> None:
    """Of 50,000 paths, each of another pair of files or all of one; rows between them find their file."""
    uris = [f"s3://bucket/{case}{n}.mp4" for n in range(names) for case in "ab"] + ["s3://bucket/C.mp4"]
    uris += [uri.replace("/a", "/A") for uri in uris if "/a" in uri]
    listing = pa.table({"uri": uris, "size": [1] * len(uris), "modified_ns": [0] * len(uris), "etag": uris})
    monkeypatch.setattr("pipeline.manifest.build.listed_in_parts", lambda _: [listing.cast(LISTING_SCHEMA)])
    paths = [f"{case}{n % names}.MP4" for n in range(50_000) for case in "ab"] + ["c.mp4", "none.mp4"]
    pq.write_table(pa.table({"path": paths}), tmp_path / "list.parquet")
    config = ManifestConfig(annotations=str(tmp_path / "list.parquet"), unlisted=True, val_share=0)
    started = time.process_time()
    manifest = read_manifest("s3://bucket", config, seed=0)
    assert time.process_time() - started < 10
    assert set(manifest.rows["uri"].to_pylist()) == set(uris)
    counts = Counter(manifest.rejected["reason"].to_pylist())
    assert (counts["ambiguous"], counts["missing"]) == (50_000, 1)
    rejected = manifest.rejected.slice(names // 2, 1).to_pylist()[0]
    same = rejected["uri"].removesuffix(".MP4")[1:]
    message = f"several files are forms of this path: s3://bucket/a{same}.mp4, s3://bucket/A{same}.mp4; rename all"
    assert rejected["message"] == f"{message} but one"


def test_a_path_does_not_leave_the_source(tmp_path: Path) -> None:
    """Annotations of a stranger name files; only those that the source itself lists are taken."""
    source, outside = tmp_path / "source", tmp_path / "outside"
    make(source, "a.mp4")
    make(outside, "private.mp4")
    written = (
        "../outside/private.mp4",
        "x/../../outside/private.mp4",
        "a/../../source/../outside/private.mp4",
        f"{outside}/private.mp4",
        f"file://{outside}/private.mp4",
        "..%2Foutside%2Fprivate.mp4",
        "/etc/passwd",
        "/etc/passwd#bytes=0+9/a.mp4",
        f"{outside}/private.mp4#bytes=0+9/a.mp4",
        "../outside/private.parquet#row=0&column=video/a.mp4",
    )
    lines = "".join(f'"{path}",l\n' for path in (*written, "a.mp4"))
    (source / "annotations.csv").write_text(f"path,label\n{lines}")
    manifest = read_manifest(str(source), ManifestConfig(val_share=0), seed=0)
    assert manifest.rows["uri"].to_pylist() == [f"{source}/a.mp4"]
    assert set(reasons(manifest).values()) == {"missing"}
    assert len(manifest.rejected) == len(written)
