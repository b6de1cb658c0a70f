"""Checkpoints in one form, free of world size, ZeRO stage and pickle: safetensors, JSON, and a marker with digests.

    checkpoints/step-00000010/generation-0003-model-0.safetensors      weights by name, in files of at most a GiB or so
                              generation-0003-optimizer-0.safetensors  optimizer state by parameter name
                              generation-0003-state.json               step, position, timed-out samples, ...
                              complete.json                         names and digests of these; the last, by one PUT
    journal/step-00000010-generation-0003.jsonl                        the metric lines since the checkpoint before

A checkpoint without its marker, or whose files do not match it, is never loaded. Files carry the generation that wrote
them and the first sound marker stays, so that a writer that was cut off can spoil nothing (see `jobs.runs.fencing`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from pipeline.storage.files import StorageError, delete, join, list_existing, read_bytes, write_bytes, write_unless
from pipeline.storage.records import is_whole_number, parse_json

logger = logging.getLogger(__name__)
Content = TypeVar("Content")

MODEL, OPTIMIZER, STATE, MARKER = "model", "optimizer", "state", "complete.json"
FIGURES = ("loss", "learning_rate", "clips_per_second", "unix_seconds")  # of a journal line
FILE_BYTES = 2**30  # one PUT holds 5 GiB at most, and every file is in memory once


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to resume."""

    step: int
    """Optimizer steps done."""
    position: int
    """Views consumed: the only cursor into the data."""
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further facts as JSON values (run ids, known failures)."""
    metric: float | None = None
    """How good the model is, lower is better; None when it was not measured."""


@dataclass(frozen=True)
class Cursor:
    """Where a run resumes; the defaults: at its beginning."""

    step: int = 0
    """Optimizer steps done."""
    position: int = 0
    """Views consumed."""
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(
    output: str, checkpoint: Checkpoint, generation: int = 0, *, before_marker: Callable[[], None] = lambda: None
) -> None:
    """Write one checkpoint: files first, then the marker that makes it complete.

    ``before_marker`` is called when all but the marker is written; what it raises leaves the checkpoint incomplete.
    """
    digests = {}
    for kind, data in _files(checkpoint):
        name = f"generation-{generation:04d}-{kind}"
        write_bytes(join(_folder(output, checkpoint.step), name), data)
        digests[name] = hashlib.sha256(data).hexdigest()
    # The commit: until the marker exists, readers ignore all of the above. The token is checked last, because during an
    # upload of minutes another start may take over and delete these files.
    before_marker()
    marker = {"step": checkpoint.step, "metric": checkpoint.metric, "sha256": digests}

    def stays(_marker: bytes) -> bool:
        """An earlier generation's sound marker for the same step stays; this one's files are collected later."""
        if _none_if_torn(output, checkpoint.step, _verify):
            return True
        # A torn one came late, from a writer that was cut off, after its files had been deleted.
        before_marker()
        return False

    write_unless(join(_folder(output, checkpoint.step), MARKER), json.dumps(marker, indent=2).encode(), stays)


def complete_steps(output: str) -> list[int]:
    """Steps of the checkpoints whose marker and files all exist, ascending."""
    return sorted(_complete(output, _listed_checkpoints(output)))


def latest_checkpoint(output: str) -> Checkpoint | None:
    """The newest checkpoint whose files match its marker; None when there is none."""
    before: list[int] | None = None
    while (steps := complete_steps(output)) != before:  # a run at work may remove all of them while they are read
        if (found := _first(read_checkpoint(output, step) for step in reversed(steps))) is not None:
            return found
        before = steps
    return None


def newest_cursor(output: str) -> Cursor:
    """The cursor of the checkpoint that `latest_checkpoint` gives, holding one of its files in memory at a time."""
    return _first(_none_if_torn(output, step, _cursor) for step in reversed(complete_steps(output))) or Cursor()


def measured_steps(output: str) -> list[tuple[float, int]]:
    """(metric, step) of the complete checkpoints that were measured, the best first."""
    return _measured(_complete(output, _listed_checkpoints(output)))


def best_checkpoint(output: str) -> Checkpoint | None:
    """The checkpoint with the lowest metric whose files match its marker; None when there is none."""
    return _first(read_checkpoint(output, step) for _, step in measured_steps(output))


def _first(found: Iterator[Content | None]) -> Content | None:
    return next((content for content in found if content is not None), None)


def read_checkpoint(output: str, step: int) -> Checkpoint | None:
    """One checkpoint; None, with a warning, when it is torn."""
    return _none_if_torn(output, step, _checkpoint)


def _none_if_torn(output: str, step: int, read: Callable[[str, dict[str, Any]], Content]) -> Content | None:
    folder = _folder(output, step)
    try:
        return read(folder, parse_json(read_bytes(join(folder, MARKER))))
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        logger.warning("checkpoint %s is damaged and ignored: %s", folder, error)
    except StorageError as error:
        if not error.missing:
            raise
        logger.warning("checkpoint %s is incomplete and ignored: %s", folder, error)
    return None


def _checkpoint(folder: str, marker: dict[str, Any]) -> Checkpoint:
    texts: dict[str, bytes] = {}
    tensors: dict[str, dict[str, Tensor]] = {MODEL: {}, OPTIMIZER: {}}
    for name, data in _verified_files(folder, marker):  # one at a time: bytes and tensors are not both held whole
        kind = next((kind for kind in tensors if f"-{kind}-" in name), None)
        if kind:
            tensors[kind] |= safetensors.torch.load(data)
        else:
            texts[name] = data
    cursor = _state(texts)
    return Checkpoint(cursor.step, cursor.position, tensors[MODEL], tensors[OPTIMIZER], cursor.extra, marker["metric"])


def _cursor(folder: str, marker: dict[str, Any]) -> Cursor:
    return _state({name: data for name, data in _verified_files(folder, marker) if STATE in name})


def _verify(folder: str, marker: dict[str, Any]) -> int:
    return sum(1 for _ in _verified_files(folder, marker))


def _verified_files(folder: str, marker: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for name, digest in marker["sha256"].items():
        if "/" in name:
            raise ValueError(f"its marker names {name}, which is no file of it")
        data = read_bytes(join(folder, name))
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{name} is not as written")
        yield name, data


def _state(files: Mapping[str, bytes]) -> Cursor:
    texts = [data for name, data in files.items() if STATE in name]
    if len(texts) != 1:
        raise ValueError("its marker must name one state file")
    state = parse_json(texts[0])
    if not is_whole_number(state["step"]) or not is_whole_number(state["position"]) or type(state["extra"]) is not dict:
        raise ValueError("its state must hold step, position and extra")
    return Cursor(state["step"], state["position"], state["extra"])


def collect_checkpoints(output: str, *, generation: int, keep: int, keep_best: int) -> None:
    """Delete what no run resumes from: superfluous, torn and orphaned checkpoints, and files of earlier generations.

    Only the holder of the token may call it, while it writes nothing else there. One that has just lost it leaves
    checkpoints alone in which a later generation has written. ``keep`` of the newest stay, and ``keep_best`` of those
    with the lowest metric.
    """
    listed = _listed_checkpoints(output)
    markers = _complete(output, listed)
    kept = {*sorted(markers)[-keep:], *(step for _, step in _measured(markers)[:keep_best])}
    for step, names in listed.items():
        if max(map(_generation, names)) > generation:
            continue
        wanted = {MARKER, *markers[step]["sha256"]} if step in kept else set()
        for name in sorted(names - wanted, key=lambda name: name != MARKER):  # half deleted must not look complete
            delete(join(_folder(output, step), name))


def _generation(name: str) -> int:
    """Which generation wrote a file of a checkpoint; 0 for the marker."""
    match = re.match(r"generation-(\d+)-", name)
    return int(match[1]) if match else 0


def discard_after(output: str, step: int) -> None:
    """Delete all checkpoints after a step: they are torn, or the run would resume from them.

    Where that fails they do no harm: what is written there next replaces the marker.
    """
    for later, names in _listed_checkpoints(output).items():
        if later > step:
            try:
                for name in sorted(names, key=lambda name: name != MARKER):
                    delete(join(_folder(output, later), name))
            except StorageError as error:
                logger.warning("torn checkpoint of step %d not deleted: %s", later, error)


def write_journal(output: str, step: int, generation: int, lines: str) -> None:
    """Keep the metric lines up to a step, one JSON object a line."""
    write_bytes(join(output, "journal", f"step-{step:08d}-generation-{generation:04d}.jsonl"), lines.encode())


def read_journal(output: str, until_step: int) -> str:
    """The metric lines of all steps up to a checkpoint, joined from their segments, each step once.

    Steps after a checkpoint that was never finished were written twice; the later generation, then segment, counts.
    """
    lines: dict[int, str] = {}
    for _, _, uri in sorted(_journal_segments(output)):
        for entry, line in _entries(read_bytes(uri).decode(errors="replace")):
            lines[entry["step"]] = line + "\n"
    return "".join(lines[step] for step in sorted(lines) if step <= until_step)


def journal_entries(lines: str) -> list[dict[str, Any]]:
    """The entries of journal lines, damaged ones left out with a warning."""
    return [entry for entry, _ in _entries(lines)]


def _entries(lines: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Entries that have a step, and the numbers that others compute with; each with its line."""
    for line in lines.splitlines():
        try:
            entry = parse_json(line)
            if not is_whole_number(entry["step"]) or not all(_is_figure(entry.get(key, 0.0)) for key in FIGURES):
                raise ValueError("its figures are no numbers")
            if not isinstance(entry.get("validation", {}), dict):
                raise ValueError("its validation is no object")
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("a journal line is damaged, left out: %s", error)
        else:
            yield entry, line


def _is_figure(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _journal_segments(output: str) -> Iterator[tuple[int, int, str]]:
    for uri in list_existing(join(output, "journal"))["uri"].to_pylist():
        match = re.search(r"/step-(\d+)-generation-(\d+)\.jsonl$", uri)
        if match:
            yield int(match[2]), int(match[1]), uri


def _files(checkpoint: Checkpoint) -> Iterator[tuple[str, bytes]]:
    for kind, tensors in ((MODEL, checkpoint.weights), (OPTIMIZER, checkpoint.optimizer)):
        for number, part in enumerate(_parts(tensors)):
            yield f"{kind}-{number}.safetensors", safetensors.torch.save(part)
    state = {"step": checkpoint.step, "position": checkpoint.position, "extra": dict(checkpoint.extra)}
    yield f"{STATE}.json", json.dumps(state).encode()


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of `FILE_BYTES` at most, a larger tensor by itself; at least one group."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.nbytes > FILE_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    yield part


def _complete(output: str, listed: Mapping[int, set[str]]) -> dict[int, dict[str, Any]]:
    """The markers of the checkpoints whose files all exist; their content is not checked."""
    markers = {step: _marker(output, step) for step, names in listed.items() if MARKER in names}
    return {
        step: found for step, found in markers.items() if found["sha256"] and found["sha256"].keys() <= listed[step]
    }


def _measured(markers: Mapping[int, dict[str, Any]]) -> list[tuple[float, int]]:
    return sorted((marker["metric"], step) for step, marker in markers.items() if marker["metric"] is not None)


def _marker(output: str, step: int) -> dict[str, Any]:
    """A marker's content; a damaged one, and one that was removed since the listing, names no files."""
    try:
        marker = parse_json(read_bytes(join(_folder(output, step), MARKER)))
        metric = marker["metric"]
        measured = type(metric) in (int, float) and math.isfinite(metric)
        return {"metric": metric if measured else None, "sha256": dict(marker["sha256"])}
    except (ValueError, KeyError, TypeError, OverflowError):
        return {"metric": None, "sha256": {}}
    except StorageError as error:
        if not error.missing:  # a writer keeps the newest few, and readers of a run at work do not hold it up
            raise
        return {"metric": None, "sha256": {}}


def _listed_checkpoints(output: str) -> dict[int, set[str]]:
    """The names of the files of each step, complete or not."""
    found: dict[int, set[str]] = defaultdict(set)
    for uri in list_existing(join(output, "checkpoints"))["uri"].to_pylist():
        match = re.search(r"/step-(\d+)/([^/]+)$", uri)
        if match:
            found[int(match[1])].add(match[2])
    return found


def _folder(output: str, step: int) -> str:
    return join(output, "checkpoints", f"step-{step:08d}")
