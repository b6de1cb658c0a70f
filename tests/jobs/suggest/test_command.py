"""`suggest`: its page, and the CSV of a person's choices, which `prepare` takes; in a real browser too."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.core.errors import UserError
from jobs.prepare.command import PrepareConfig
from jobs.prepare.command import run as prepare
from jobs.reports.html import csp_hash
from jobs.runs.tracking_config import TrackingConfig
from jobs.suggest.command import SuggestConfig, run
from jobs.synthetic.motion_videos import render_motion_videos
from tests.support.browser import open_page
from tests.support.tag_output import commit, commit_embedded

HOSTILE = 'a "quoted", name & <b>.webm'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``source/`` of four videos, one of a hostile name; ``tag/`` of these and one whose name cannot be shown."""
    folder = tmp_path_factory.mktemp("found")
    videos = [video.path for video in render_motion_videos(folder / "source", 4, seed=1, size=64, num_frames=40)]
    videos[0] = videos[0].rename(folder / "source" / HOSTILE)
    vectors = np.random.default_rng(0).normal(size=(5, 2, 8))
    uris = [*map(str, videos), "/odd\x07name.mp4"]
    labels = {"jump": 0.5, "run, <fast>": 0.375}
    commit_embedded(str(folder / "tag"), dict(zip(uris, vectors, strict=True)), lambda uri, index: labels)
    return folder


def test_the_page_permits_its_own_script_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(SuggestConfig(output=str(folder / "tag"), count=5))
    assert (report["suggested"], report["pool"], report["labelled"]) == (4, 5, 0)
    assert "1 clips are left out: their names" in capsys.readouterr().err
    text = Path(report["page"]).read_text()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    (code,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert f"; script-src &#39;{csp_hash(code)}&#39;" in policy or f"; script-src '{csp_hash(code)}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy.replace("style-src 'unsafe-inline'", "")
    assert text.count("<figure") == text.count("data:image/jpeg") == 4
    assert "<b>" not in text
    assert '<option value="run, &lt;fast&gt;">' in text


def test_labelled_videos_are_left_out(folder: Path, tmp_path: Path) -> None:
    done = tmp_path / "done.csv"
    uris = sorted(map(str, (folder / "source").rglob("*.*")))
    done.write_text("path,label\n" + "".join(f'"{uri.replace(chr(34), 2 * chr(34))}",x\n' for uri in uris[:2]))
    save, page = str(tmp_path / "clips.parquet"), str(tmp_path / "page.html")
    report = run(SuggestConfig(output=str(folder / "tag"), count=2, labelled=str(done), save=save, page=page))
    assert report["labelled"] == 2
    assert not set(pq.read_table(save)["uri"].to_pylist()) & set(uris[:2])


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="count=0: must be at least 1"):
        SuggestConfig(output="o", count=0)
    commit(str(tmp_path / "plain"), ("/a.mp4", "1", "ok"))
    with pytest.raises(UserError, match="holds no embeddings"):
        run(SuggestConfig(output=str(tmp_path / "plain")))
    commit_embedded(str(tmp_path / "one"), {"/a.mp4": np.ones((2, 4))})
    (tmp_path / "all.csv").write_text("path,label\n/a.mp4,x\n")
    with pytest.raises(UserError, match="holds no scored video without a label; tag more videos"):
        run(SuggestConfig(output=str(tmp_path / "one"), labelled=str(tmp_path / "all.csv")))


@pytest.mark.faults
def test_labels_are_chosen_in_a_browser_and_prepared(folder: Path, tmp_path: Path) -> None:
    """Headless Chromium under the page's own policy: a guess, own words, a choice taken back; then the download."""
    page = Path(run(SuggestConfig(output=str(folder / "tag"), count=5))["page"])
    with open_page(page, tmp_path) as browser:
        assert browser.evaluate("document.getElementById('progress').textContent") == "0 of 4 labelled"
        assert browser.evaluate("document.getElementById('download').disabled") is True
        browser.evaluate("clips[0].querySelectorAll('button')[1].click()")
        browser.evaluate("clips[1].querySelectorAll('button')[0].click()")
        browser.evaluate("clips[1].querySelectorAll('button')[0].click()")
        browser.evaluate(
            "for (const clip of clips.slice(2)) { const input = clip.querySelector('input');"
            " input.value = ' my \"own\" words '; input.dispatchEvent(new Event('input')); }"
        )
        assert browser.evaluate("document.getElementById('progress').textContent") == "3 of 4 labelled"
        browser.evaluate("document.getElementById('download').click()")
        content = browser.downloaded("annotations.csv")
        assert browser.evaluate("document.querySelectorAll('figure img').length") == 4
        browser.evaluate(
            "{ const added = document.createElement('script'); added.textContent = 'window.evil = 1';"
            " document.body.append(added); }"
        )
        assert browser.evaluate("typeof window.evil") == "undefined"
    assert content.startswith("path,label,start_seconds,end_seconds\n")
    annotations = tmp_path / "annotations.csv"
    assert annotations.read_text() == content
    prepared = prepare(
        PrepareConfig(
            source=str(folder / "source"), annotations=str(annotations), output=str(tmp_path / "set"), workers=0,
            tracking=TrackingConfig(uri="none"),
        )
    )  # fmt: skip
    assert (prepared["clips"], prepared["classes"], prepared["rejected"]) == (3, 2, {})
