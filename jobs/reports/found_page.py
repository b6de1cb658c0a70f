"""The pages of the commands that find things: one file each that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jobs.reports.html import render, script
from jobs.reports.tag_thumbnails import Shown


def search_page(title: str, facts: Mapping[str, str], shown: Sequence[Shown]) -> bytes:
    """Found windows, the best first.

    Args:
        shown: rows with times, ``labels``, ``scores`` and either ``similarity`` or ``score``.
    """
    return render("search.html", title=title, facts=facts, gallery=shown)


def duplicates_page(title: str, facts: Mapping[str, str], groups: Sequence[Sequence[Shown]]) -> bytes:
    """Groups of near-duplicates.

    Args:
        groups: rows of `jobs.duplicates.groups.GROUP_SCHEMA`, the representative of each group first.
    """
    return render("duplicates.html", title=title, facts=facts, groups=groups)


def suggestion_page(title: str, facts: Mapping[str, str], shown: Sequence[Shown], labels: Sequence[str]) -> bytes:
    """Clips to label, with a script that turns the choices into a CSV; the policy permits that script alone.

    Args:
        shown: rows of windows with ``uncertainty``.
        labels: offered for every clip.
    """
    return render("suggest.html", title=title, facts=facts, gallery=shown, labels=labels, code=script("labels.js"))
