"""`like=video.mp4@12.5s`: the embedding of one window, of the table or of any other file.

Legend: D values of an embedding.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.core.errors import UserError
from jobs.core.holdings import CLAIM
from jobs.finding.windows import Floats, scored_parts, unit_embeddings
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import Classifier, ClassifierWeights, PublicWeightsConfig, find_classifier
from jobs.weights.model_config import view_config
from jobs.weights.registry import initial_file
from pipeline.decode.config import DecodeConfig, DecodeError
from pipeline.storage.fetch import fetched
from pipeline.storage.files import StorageError, absolute, exists, join, read_json
from pipeline.storage.records import DamagedError
from pipeline.tagging.reader import TagSnapshot
from pipeline.tagging.stages import DecodeWindows
from pipeline.tagging.window_views import WholeVideo, WindowViews, grid_of

FORM = re.compile(r"(?P<video>.+)@(?P<seconds>\d+(\.\d+)?)s?", re.DOTALL)
OVERRIDES = "model_overrides."
EXAMPLES = 3


@dataclass(frozen=True)
class Moment:
    """A time in a video, as it was given."""

    given: str
    video: str
    """URI, path, or the end of the URI of a video of the table."""
    seconds: float

    @classmethod
    def of(cls, given: str) -> Moment:
        """`ValueError` for another form."""
        if (found := FORM.fullmatch(given)) is None:
            raise ValueError(f"like={given}: must be VIDEO@SECONDS; give for instance like=video.mp4@12.5s")
        return cls(given, found["video"], float(found["seconds"]))


class Query(NamedTuple):
    """What is searched for."""

    embedding: Floats
    """``[D]``."""
    uri: str | None
    """Of the video in the table; None of a file outside."""
    window_index: int | None


@dataclass(frozen=True, kw_only=True)
class OutsideConfig:
    """How a file outside of the table is decoded and embedded."""

    init: str | None
    """Weights of the tags; default: those that the tagging job was given."""
    decode: DecodeConfig
    tracking: TrackingConfig


def query_of(moment: Moment, snapshot: TagSnapshot, outside: OutsideConfig) -> Query:
    """The stored embedding where the table holds the video, else that of the file.

    Raises:
        UserError: no such video, none of its windows is scored, the file cannot be decoded, or the weights are others.
    """
    return stored_query(moment, snapshot) or Query(embedding_of_file(moment, snapshot, outside), None, None)


def stored_query(moment: Moment, snapshot: TagSnapshot) -> Query | None:
    """The window of the table whose middle is nearest to a moment; None where the table has no such video.

    Raises:
        UserError: several videos of this name, or the time is beyond the end.
    """
    found = pa.concat_tables(_windows_of(moment.video, part) for part in scored_parts(snapshot, QUERY_COLUMNS))
    if not len(found):
        return None
    uris = pc.unique(found["uri"]).to_pylist()
    if len(uris) > 1:
        raise UserError(f"like={moment.given}: {len(uris)} videos have this name ({uris[:EXAMPLES]}); give one's URI")
    if moment.seconds > (end := pc.max(found["end_seconds"]).as_py()):
        raise UserError(f"like={moment.given}: its last scored window ends at {end:g} s; give an earlier time")
    middles = (found["start_seconds"].to_numpy() + found["end_seconds"].to_numpy()) / 2
    best = found.slice(int(np.argmin(np.abs(middles - moment.seconds))), 1)
    return Query(unit_embeddings(best)[0], uris[0], best["window_index"][0].as_py())


QUERY_COLUMNS = ("uri", "window_index", "start_seconds", "end_seconds", "embedding")


def _windows_of(video: str, part: pa.Table) -> pa.Table:
    """The rows of a URI, or of any whose last parts are these."""
    exact = pc.is_in(part["uri"], pa.array([video, absolute(video)]))
    return part.filter(pc.or_(exact, pc.ends_with(part["uri"], f"/{video}")))


def embedding_of_file(moment: Moment, snapshot: TagSnapshot, outside: OutsideConfig) -> Floats:
    """The embedding ``[D]`` that `tag` would store for the window of a file that is nearest to a moment.

    Raises:
        UserError: see `query_of`.
    """
    uri = absolute(moment.video)
    if not exists(uri):
        raise UserError(f"like={moment.given}: neither a scored video of the table nor a file; check the name")
    run = settings_of_run(snapshot.output)
    init = outside.init or run.get("init")
    if init is None:
        raise UserError(f"init=null: output={snapshot.output} does not name its weights; give them")
    with initial_file(init, outside.tracking, snapshot.output) as file:
        weights = find_classifier(init, _public_weights(run), fetched=file)
        _refuse_other_weights(weights, snapshot)
        return _embedded(moment, uri, weights, snapshot, outside.decode)


def settings_of_run(output: str) -> dict[str, Any]:
    """The keys of the tagging job, dotted; none where its claim is missing.

    Raises:
        StorageError: it is damaged, or cannot be read.
    """
    try:
        run = dict(read_json(claim := join(output, CLAIM), {"config": dict})["config"])
    except StorageError as error:
        if not error.missing:
            raise
        return {}
    for key in ("init", "model", "classes"):
        if not isinstance(run.get(key), str | None):
            raise DamagedError(claim, f"is damaged: {key} is no text", "give init=")
    return run


def _public_weights(run: dict[str, Any]) -> PublicWeightsConfig:
    overrides = {key.removeprefix(OVERRIDES): value for key, value in run.items() if key.startswith(OVERRIDES)}
    return PublicWeightsConfig(model=run.get("model"), model_overrides=overrides, classes=run.get("classes"))


def _refuse_other_weights(weights: ClassifierWeights, snapshot: TagSnapshot) -> None:
    """Embeddings of two models have nothing in common."""
    wanted = snapshot.settings["weights_digest"]
    if weights.digest != wanted:
        raise UserError(
            f"init={weights.uri}: has the digest {weights.digest}, the tags were made with {wanted}; give those weights"
        )


def _embedded(
    moment: Moment, uri: str, weights: ClassifierWeights, snapshot: TagSnapshot, decode: DecodeConfig
) -> Floats:
    settings = snapshot.settings
    whole = WholeVideo(**settings.get("whole_video", {}))
    grid = grid_of(settings.get("window_seconds", 0.0), settings.get("hop_seconds", 1.0), whole)
    image = view_config(weights.encoder) if weights.media == "image" else None
    views = WindowViews(grid, weights.input_size, whole, image)
    stage = DecodeWindows(decode, views)
    try:
        with fetched(uri, decode.max_bytes) as path, stage.decoder as decoder:
            video = stage.facts(path)
            if moment.seconds > video["duration_seconds"]:
                raise UserError(f"like={moment.given}: lasts {video['duration_seconds']:g} s; give an earlier time")
            index = grid.nearest(moment.seconds, video["duration_seconds"])
            clips = decoder.decode(path, views.of(video, index))
    except DecodeError as error:
        raise UserError(f"like={moment.given}: {error.reason}: {error.message}; give another video") from error
    classifier = Classifier(weights.file, settings["precision"], False, weights.model_config)
    return np.asarray(classifier.score(np.stack(clips))[1].mean(0), np.float32)
