"""What a preparation has done, and why nothing of its source can be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobs.core.cli import echo
from pipeline.manifest.leftovers import of_the_other_kind
from pipeline.media import Media
from pipeline.prepare.run import Outcome
from pipeline.prepare.versions import read_rejected
from pipeline.storage.files import join, read_json

COUNTS = (
    "videos", "clips", "clips_by_split", "labelled_clips", "rejected", "skipped_files", "source_bytes", "stored_bytes",
)  # fmt: skip


def preparation_report(outcome: Outcome, source: str, media: Media) -> dict[str, Any]:
    """The figures of the version that a preparation has made or found; warns of media of the other kind."""
    version: Mapping[str, Any] = outcome.version
    counts = version["counts"]
    if others := of_the_other_kind(counts.get("files_skipped", {}), media):
        other = "image" if media == "video" else "video"
        echo(f"source={source}: {others} {other}s were skipped; media={other} prepares them into a set of their "
             "own", warning=True)  # fmt: skip
    animations = {"animations": counts["animations"]} if "animations" in counts else {}
    return {
        "status": "prepared" if outcome.is_new else "already up to date",
        "version": version["version"],
        "digest": version["digest"],
        **{key: counts[key] for key in COUNTS},
        "trimmed_frames": counts.get("trimmed_frames", 0),  # versions of older releases count neither
        "damaged_frames": counts.get("damaged_frames", 0),
        "classes": len(version["classes"]),
        "classes_without_training_clips": counts.get("classes_without_training_clips", []),
        "exclude_unmatched": version.get("exclude_unmatched", []),
        "missing_in_source": outcome.missing_in_source,
        "files_skipped": counts.get("files_skipped", {}),
        **animations,
    }


def nothing_usable(report: Mapping[str, Any], source: str, output: str) -> str | None:
    """The message about a set without a clip, unless `exclude` alone has emptied it; None for one with clips."""
    reasons = {reason: count for reason, count in report["rejected"].items() if reason != "excluded"}
    if report["clips"] or not reasons:
        return None
    files = read_json(join(output, "versions", f"{report['version']:04d}.json"))["rejected"]
    first = next(row for row in read_rejected(output, files).to_pylist() if row["reason"] in reasons)
    counted = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
    return (
        f"source={source}: none of its {sum(reasons.values())} videos can be used ({counted}; the first: "
        f"{first['uri']}: {first['message']}); {output}/rejected lists all; mend them and run the same command again, "
        "or give other keys and another output"
    )
