"""Which source tree runs: of a git checkout, or as the environment says."""

from __future__ import annotations

import pytest

from jobs.runs.source_tree import CHANGED_FILES_TAG, COMMIT_TAG, REVISION_VARIABLE, source_tags


def test_where_there_is_no_checkout_the_environment_tells_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert source_tags()[CHANGED_FILES_TAG].isdigit()
    monkeypatch.setenv(REVISION_VARIABLE, "f" * 40)
    assert source_tags()[COMMIT_TAG] != "f" * 40
    monkeypatch.setattr("jobs.runs.source_tree._git", lambda *_: None)
    assert source_tags() == {COMMIT_TAG: "f" * 40}
    monkeypatch.delenv(REVISION_VARIABLE)
    assert source_tags() == {}
