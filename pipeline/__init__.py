"""From annotations and video objects to Arrow batches of decoded clips, in a known order, whatever is broken."""

from pipeline.columns import ManifestError
from pipeline.conventions import ManifestConfig, read_class_list
from pipeline.dataset import iter_micro_batches, stream_cpus, stream_execution_options, training_stream
from pipeline.decode import IsolatedDecoder
from pipeline.decode_config import DecodeConfig, DecodeError, FrameView, TimeView, VideoInfo
from pipeline.evaluation_dataset import ViewProtocol, evaluation_views
from pipeline.execution import configure_execution
from pipeline.fixed_views import FixedView, fixed_views
from pipeline.order import StreamPart
from pipeline.patience import patiently
from pipeline.prepare import Outcome, PlannedSet, PrepareSettings, finish_set, plan_set, preview_set
from pipeline.prepare_versions import current_rejected, current_videos, rejections
from pipeline.sampling import CropBox, ViewConfig, center_crop
from pipeline.schema import CLIP_SCHEMA, REJECTED_SCHEMA, UNLABELLED, clip_id
from pipeline.shard_writer import StoreConfig
from pipeline.shards import PreparedSet, open_prepared
from pipeline.storage import (
    StorageError,
    absolute,
    delete,
    exists,
    filesystem,
    is_local,
    is_local_relative,
    join,
    list_files,
    local_copy,
    read_bytes,
    write_bytes,
    write_if_absent,
    write_unless,
)
from pipeline.tag_output import PlannedVersion, publish, unfinished_version, write_plan
from pipeline.tag_rows import tag_rows
from pipeline.tag_schema import FAILED, PARTIAL
from pipeline.tag_source import SourceListing, list_source, new_or_changed, tombstones
from pipeline.tag_stages import DecodeWindows, ProbeVideos
from pipeline.tag_view import KnownVideos, last_commit, read_tags, read_videos
from pipeline.transcode_config import TranscodeConfig
from pipeline.window_views import WholeVideo, WindowViews, grid_of
from pipeline.windows import DELETED, OK, WindowGrid, plan_units, window_times

__all__ = [
    "CLIP_SCHEMA",
    "DELETED",
    "FAILED",
    "OK",
    "PARTIAL",
    "REJECTED_SCHEMA",
    "UNLABELLED",
    "CropBox",
    "DecodeConfig",
    "DecodeError",
    "DecodeWindows",
    "FixedView",
    "FrameView",
    "IsolatedDecoder",
    "KnownVideos",
    "ManifestConfig",
    "ManifestError",
    "Outcome",
    "PlannedSet",
    "PlannedVersion",
    "PrepareSettings",
    "PreparedSet",
    "ProbeVideos",
    "SourceListing",
    "StorageError",
    "StoreConfig",
    "StreamPart",
    "TimeView",
    "TranscodeConfig",
    "VideoInfo",
    "ViewConfig",
    "ViewProtocol",
    "WholeVideo",
    "WindowGrid",
    "WindowViews",
    "absolute",
    "center_crop",
    "clip_id",
    "configure_execution",
    "current_rejected",
    "current_videos",
    "delete",
    "evaluation_views",
    "exists",
    "filesystem",
    "finish_set",
    "fixed_views",
    "grid_of",
    "is_local",
    "is_local_relative",
    "iter_micro_batches",
    "join",
    "last_commit",
    "list_files",
    "list_source",
    "local_copy",
    "new_or_changed",
    "open_prepared",
    "patiently",
    "plan_set",
    "plan_units",
    "preview_set",
    "publish",
    "read_bytes",
    "read_class_list",
    "read_tags",
    "read_videos",
    "rejections",
    "stream_cpus",
    "stream_execution_options",
    "tag_rows",
    "tombstones",
    "training_stream",
    "unfinished_version",
    "window_times",
    "write_bytes",
    "write_if_absent",
    "write_plan",
    "write_unless",
]
