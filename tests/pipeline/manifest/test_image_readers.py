"""ImageNet, iNaturalist and Places365 as they are distributed: classes, indices, splits, names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from pipeline.manifest.build import Manifest, read_manifest
from pipeline.manifest.formats import ManifestConfig
from pipeline.manifest.text_columns import ManifestError
from tests.support.pages import blocks

WNIDS = ("n01440764", "n02102040", "n07920052")


def read(source: Path, **changes: Any) -> Manifest:
    return read_manifest(str(source), ManifestConfig(media="image", **changes), seed=0)


def files(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def found(manifest: Manifest, root: Path) -> dict[str, tuple[str | None, str]]:
    rows = manifest.rows.to_pylist()
    return {str(Path(row["uri"]).relative_to(root)): (row["label"], row["split"]) for row in rows}


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    files(tmp_path, *(f"train/{wnid}/{wnid}_{n}.JPEG" for wnid in WNIDS[1:] for n in range(2)))
    files(tmp_path, *(f"val/ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3)))
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn07920052 espresso\n")
    return tmp_path


TRUTH_FILES = {
    "ILSVRC2012_validation_ground_truth.txt": "n07920052\nn01440764\nn02102040\n",
    "LOC_val_solution.csv": "ImageId,PredictionString\n"
    "ILSVRC2012_val_00000003,n02102040 1 2 3 4\n"
    "ILSVRC2012_val_00000001,n07920052 85 1 499 272 n07920052 1 2 3 4\n"
    "ILSVRC2012_val_00000002,n01440764 1 2 3 4\n",
}


@pytest.mark.parametrize("name", TRUTH_FILES)
def test_imagenet_with_flat_validation_images(imagenet: Path, name: str) -> None:
    (imagenet / name).write_text(TRUTH_FILES[name])
    manifest = read(imagenet)
    assert manifest.convention == "imagenet"
    assert manifest.classes == WNIDS  # index = rank of the sorted wnid
    assert manifest.names == {"n01440764": "tench, Tinca tinca", "n07920052": "espresso"}
    rows = found(manifest, imagenet)
    assert rows["val/ILSVRC2012_val_00000001.JPEG"] == ("n07920052", "val")
    assert rows["val/ILSVRC2012_val_00000002.JPEG"] == ("n01440764", "val")
    assert rows["val/ILSVRC2012_val_00000003.JPEG"] == ("n02102040", "val")
    assert rows["train/n02102040/n02102040_1.JPEG"] == ("n02102040", "train")
    assert len(rows) == 7


def test_the_ground_truth_may_lie_elsewhere(imagenet: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("devkit") / "labels.txt"
    elsewhere.write_text(TRUTH_FILES["ILSVRC2012_validation_ground_truth.txt"])
    manifest = read(imagenet, convention="imagenet", annotations=str(elsewhere))
    assert found(manifest, imagenet)["val/ILSVRC2012_val_00000001.JPEG"] == ("n07920052", "val")
    for name, content in TRUTH_FILES.items():  # known by their names
        elsewhere.with_name(name).write_text(content)
        manifest = read(imagenet, annotations=str(elsewhere.with_name(name)))
        assert manifest.convention == "imagenet"
        assert found(manifest, imagenet)["val/ILSVRC2012_val_00000002.JPEG"] == ("n01440764", "val")


def test_the_devkits_numbers_are_refused_with_the_remedy(imagenet: Path) -> None:
    """Ids in ILSVRC's own order would silently be other classes."""
    truth = imagenet / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("490\n361\n171\n")
    for given in (None, str(truth)):
        with pytest.raises(ManifestError, match=r"the devkit's numbers follow no order of the wnids: translate them"):
            read(imagenet, annotations=given)


def test_the_lines_of_the_page_translate_the_devkits_numbers(imagenet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ids follow no order of the wnids; those above the number of classes are of inner nodes of WordNet."""
    devkit = imagenet / "ILSVRC2012_devkit_t12" / "data"
    devkit.mkdir(parents=True)
    fields = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("num_children", object)]
    rows = [(1, WNIDS[1], "English springer", 0), (2, WNIDS[2], "espresso", 0), (3, WNIDS[0], "tench, Tinca tinca", 0),
            (4, "n00001740", "entity", 3)]  # fmt: skip
    savemat(devkit / "meta.mat", {"synsets": np.array(rows, fields)[:, None]})
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n3\n1\n")
    (imagenet / "imagenet").mkdir()
    monkeypatch.chdir(imagenet)
    (block,) = blocks(Path("docs/data.md"), "python")
    exec(compile(block.text, "docs/data.md", "exec"), {})
    written = imagenet / "imagenet" / "imagenet_2012_validation_synset_labels.txt"
    assert written.read_text() == TRUTH_FILES["ILSVRC2012_validation_ground_truth.txt"]
    numbered = found(read(imagenet, annotations=str(written)), imagenet)
    assert numbered["val/ILSVRC2012_val_00000001.JPEG"] == (WNIDS[2], "val")


def test_flat_images_without_ground_truth_are_refused(imagenet: Path) -> None:
    with pytest.raises(ManifestError, match=r"flat validation images without labels; give annotations="):
        read(imagenet)


def test_imagenet_in_folders_needs_no_annotations(tmp_path: Path) -> None:
    files(tmp_path, *(f"{split}/{wnid}/{n}.JPEG" for split in ("train", "val") for wnid in WNIDS for n in range(2)))
    manifest = read(tmp_path)
    assert manifest.classes == WNIDS
    assert found(manifest, tmp_path)["val/n02102040/1.JPEG"] == ("n02102040", "val")


def coco(categories: list[dict[str, Any]], images: dict[str, int | None]) -> str:
    numbered = list(enumerate(images.items()))
    return json.dumps(
        {
            "info": {},
            "images": [{"id": 100 + number, "file_name": file} for number, (file, _) in numbered],
            "annotations": [
                {"id": number, "image_id": 100 + number, "category_id": category}
                for number, (_, category) in numbered
                if category is not None
            ],
            "categories": categories,
        }
    )


def test_inaturalist(tmp_path: Path) -> None:
    names = {7: "Turdus merula", 2: "Parus major", 30: "Parus major"}
    categories = [{"id": number, "name": name, "supercategory": "Aves"} for number, name in names.items()]
    images = {"train_val2018/Aves/7/a.jpg": 7, "train_val2018/Aves/2/b.jpg": 2}
    files(tmp_path, *images, "train_val2018/Aves/30/c.jpg", "test2018/d.jpg")
    (tmp_path / "train2018.json").write_text(coco(categories, images))
    (tmp_path / "val2018.json").write_text(coco(categories, {"train_val2018/Aves/30/c.jpg": 30}))
    (tmp_path / "test2018.json").write_text(coco([], {"test2018/d.jpg": None}))
    manifest = read(tmp_path, annotations=str(tmp_path))
    assert manifest.convention == "inaturalist"
    assert manifest.classes == ("Parus major (2)", "Turdus merula", "Parus major (30)")
    assert found(manifest, tmp_path) == {
        "train_val2018/Aves/7/a.jpg": ("Turdus merula", "train"),
        "train_val2018/Aves/2/b.jpg": ("Parus major (2)", "train"),
        "train_val2018/Aves/30/c.jpg": ("Parus major (30)", "val"),
        "test2018/d.jpg": (None, "test"),
    }


def test_one_inaturalist_file_is_recognized(tmp_path: Path) -> None:
    files(tmp_path, "a.jpg")
    (tmp_path / "val2019.json").write_text(coco([{"id": 0, "name": "x", "supercategory": "y"}], {"a.jpg": 0}))
    manifest = read(tmp_path, annotations=str(tmp_path / "val2019.json"))
    assert manifest.convention == "inaturalist"
    assert found(manifest, tmp_path) == {"a.jpg": ("x", "val")}


def test_places365(tmp_path: Path) -> None:
    files(tmp_path, "data_256_standard/a/airfield/00000001.jpg", "data_256_standard/a/apartment/outdoor/00000001.jpg")
    files(tmp_path, "val_256/Places365_val_00000001.jpg")
    (tmp_path / "categories_places365.txt").write_text("/a/airfield 0\n/a/apartment/outdoor 1\n")
    (tmp_path / "places365_train_standard.txt").write_text(
        "/a/airfield/00000001.jpg 0\n/a/apartment/outdoor/00000001.jpg 1\n"
    )
    (tmp_path / "places365_val.txt").write_text("Places365_val_00000001.jpg 1\n")
    manifest = read(tmp_path, annotations=str(tmp_path))
    assert manifest.convention == "places365"
    assert manifest.classes == ("airfield", "apartment/outdoor")
    assert found(manifest, tmp_path) == {
        "data_256_standard/a/airfield/00000001.jpg": ("airfield", "train"),
        "data_256_standard/a/apartment/outdoor/00000001.jpg": ("apartment/outdoor", "train"),
        "val_256/Places365_val_00000001.jpg": ("apartment/outdoor", "val"),
    }
