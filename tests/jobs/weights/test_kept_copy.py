"""The copy of registered weights: named by its content, so equal content is one file."""

from __future__ import annotations

from pathlib import Path

from jobs.weights.kept_copy import KEPT, keep_under


def test_equal_content_is_one_file(tmp_path: Path) -> None:
    for name, content in (("a", b"weights"), ("b", b"weights"), ("c", b"others")):
        (tmp_path / name).write_bytes(content)
    kept = [keep_under(str(tmp_path / "run"), str(tmp_path / name)) for name in ("a", "b", "c")]
    assert kept[0] == kept[1] != kept[2]
    assert Path(kept[2]).read_bytes() == b"others"
    assert {path.name for path in (tmp_path / "run" / KEPT).iterdir()} == {Path(uri).name for uri in kept}
