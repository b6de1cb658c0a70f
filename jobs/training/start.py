"""How a training run starts: everything that a start finds in storage, read once into one value.

The first start of a run pins what must not change under it: the version of the data, the copy of registered weights,
the runs that the weights come from, whether the head is new. Every later start takes these from the claim, so that a
run resumes as it began, even if the set has grown, an alias has moved or `init` is missing by then.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hiera_video.weights.checkpoint_files import read_weights
from jobs.checkpoints.store import Cursor, newest_cursor
from jobs.core.cli import replace
from jobs.core.errors import UserError
from jobs.core.holdings import is_registered
from jobs.core.init_source import (
    ENCODER,
    LICENSE,
    RUN_LINK,
    SHIPPED_CLASSES,
    absolute_init,
    class_names,
    initial_metadata,
    links_of,
    local_weights,
)
from jobs.runs.claim import Claim, new_claim, read_claim, release_output
from jobs.runs.tracking import data_tags, tracking_uri
from jobs.training.config import TrainConfig
from jobs.weights.kept_copy import KEPT, keep_under
from jobs.weights.model_config import refuse_other_media
from jobs.weights.registry import initial_file
from pipeline.manifest.formats import read_class_list
from pipeline.shards.reader import PreparedSet, open_prepared
from pipeline.storage.files import StorageError, absolute, join

ConfigT = TypeVar("ConfigT", bound=TrainConfig)

DATA_VERSION, INIT, NEW_HEAD, TAGS = "data_version", "init", "new_head", "tags"  # pins of a run
ARITHMETIC = "arithmetic"
# Counted up when the same configuration and data give other samples, draws or updates; pinned by every run since 2.
# 2: mixing partners are of other videos; the decoder's position table and mask token decay.
# 3: the batch that the learning rate is for counts videos, not their repeats; copies of rare clips (balanced classes)
# are spread over the epoch; RandAugment's moves leave the mean colour in images, which had grey.
# 4: with several workers and bf16 gradients travel as bfloat16; the norm that clips is summed in another order.
ARITHMETIC_VERSION = 4


@dataclass(frozen=True)
class Start(Generic[ConfigT]):
    """What a start found; nothing after it reads the claim, the set's record or the cursor again."""

    command: str
    config: ConfigT
    """As the user gave it, with absolute paths."""
    claim: Claim | None
    """None for a dry run of a run that has no claim yet."""
    prepared: PreparedSet
    """The data, in the version that the run is pinned to."""
    init: str | None
    """The weights as workers can read them: of a registered model, the copy under `output`."""
    links: Mapping[str, str]
    """Tags with the runs that the weights come from."""
    new_head: bool
    """Whether the classifier's head starts new: `init` has none, one for other classes, or does not say for which."""
    cursor: Cursor
    """Where the run resumes."""

    @property
    def worker_config(self) -> ConfigT:
        """The configuration with an `init` that workers can read."""
        return replace(self.config, init=self.init)


@contextmanager
def begin(command: str, config: ConfigT, *, labelled: bool = False) -> Iterator[Start[ConfigT]]:
    """Read what there is and claim the output; a mistake that is found before any work began leaves the output free.

    Where the model learns from labels (``labelled``) the set must have classes.

    Raises:
        UserError: the output holds a run with another configuration, or data or weights are not usable.
        StorageError: the set is missing or cannot be read.
    """
    config = with_absolute_paths(config)
    start = _read(command, config, read_claim(config.output, config), labelled=labelled, keep_init=True)
    if start.claim is None:
        claim = new_claim(config.output, config, _pins(start))
        start = replace(start, claim=claim)
        if claim.resumed:
            # Another first start was faster: its claim decides, so everything is read again as that one pinned it.
            start = _read(command, config, claim, labelled=labelled, keep_init=True)
    assert start.claim is not None
    try:
        yield start
    except (UserError, StorageError):
        release_output(config.output, start.claim)  # so that the corrected command is not refused
        raise


def preview(command: str, config: ConfigT, *, labelled: bool = False) -> Start[ConfigT]:
    """What `begin` would find, for a dry run: nothing is claimed or written.

    Raises:
        UserError, StorageError: as `begin`.
    """
    config = with_absolute_paths(config)
    claim = read_claim(config.output, config)
    return _read(command, config, claim, labelled=labelled, keep_init=False)


def _read(command: str, config: ConfigT, claim: Claim | None, *, labelled: bool, keep_init: bool) -> Start[ConfigT]:
    """One pass over all inputs: pinned ones by the claim, of a first start as they are now."""
    prepared = open_prepared(config.data, claim.pins[DATA_VERSION] if claim else None)
    if labelled and not prepared.classes:
        raise UserError(
            f"data={config.data}: has no classes; prepare it with `annotations` or from a folder of classes"
        )
    refuse_other_media(config.encoder, prepared)
    cursor = newest_cursor(config.output)
    if claim is not None:
        _refuse_other_arithmetic(config.output, claim)
        init = join(config.output, KEPT, claim.pins[INIT]) if INIT in claim.pins else config.init
        links = {key: value for key, value in claim.pins[TAGS].items() if key.endswith((RUN_LINK, LICENSE))}
        return Start(command, config, claim, prepared, init, links, claim.pins[NEW_HEAD], cursor)
    if config.init is None:
        return Start(command, config, None, prepared, None, {}, labelled, cursor)
    with initial_file(config.init, config.tracking, config.output) as file:
        links = links_of(initial_metadata(file))
        new_head = labelled and classes_of(file) != prepared.classes
        init = keep_under(config.output, file) if keep_init and is_registered(config.init) else config.init
    return Start(command, config, None, prepared, init, links, new_head, cursor)


def _pins(start: Start[Any]) -> dict[str, Any]:
    """What every later start finds as it is now."""
    pins = {
        "command": start.command,
        DATA_VERSION: start.prepared.version,
        NEW_HEAD: start.new_head,
        ARITHMETIC: ARITHMETIC_VERSION,
        TAGS: {**start.links, **data_tags(start.prepared)},
    }
    # By its name alone: an output that is moved takes the copy along.
    return pins | ({INIT: posixpath.basename(str(start.init))} if start.init != start.config.init else {})


def _refuse_other_arithmetic(output: str, claim: Claim) -> None:
    """A run resumed by other rules would be neither the old one nor the new one.

    Raises:
        UserError: the run was started under other rules of training.
    """
    if (version := claim.pins.get(ARITHMETIC, 1)) != ARITHMETIC_VERSION:
        raise UserError(
            f"output={output}: holds a run that an {'older' if version < ARITHMETIC_VERSION else 'newer'} release "
            f"started, which trains otherwise (arithmetic {version}, here {ARITHMETIC_VERSION}); resume it with that "
            "release, or choose another output"
        )


def classes_of(init: str | None) -> tuple[str, ...] | None:
    """Classes that the head of ``init`` distinguishes; None where it has no head or does not say.

    Public classifiers never say: of 400 classes they count as Kinetics-400's, which they are published for.

    Raises:
        UserError: the weights are missing or damaged.
    """
    metadata = initial_metadata(init)
    if init is None or "config_class" in metadata:
        has_head = metadata.get("part") != ENCODER
        return class_names(init, metadata) if init and has_head and "classes" in metadata else None
    with local_weights(init) as path:
        try:
            head = read_weights(path).tensors.get("head.bias")
        except ValueError as error:
            raise UserError(f"init={init}: {str(error).replace(str(path), 'the file')}") from error
    listed = None if head is None else SHIPPED_CLASSES.get(len(head))
    return read_class_list(listed) if listed else None


def with_absolute_paths(config: ConfigT) -> ConfigT:
    """The configuration with absolute paths and URIs, because workers have working directories of their own."""
    return replace(
        config,
        data=absolute(config.data),
        output=absolute(config.output),
        init=absolute_init(config.init) if config.init else None,
        tracking=replace(config.tracking, uri=tracking_uri(config.tracking, config.output) or "none"),
    )
