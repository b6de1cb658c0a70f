"""Files that are called videos and name other files: nothing but the file itself is opened."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.child_loop import OPEN_FILES
from pipeline.decode.config import Backend, DecodeConfig, DecodeError, FrameView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.decode.media import begins_as_container, open_media
from pipeline.transcode.config import TranscodeConfig
from pipeline.transcode.transcoder import IsolatedTranscoder
from tests.support.listener import listener
from tests.support.numbered import write_numbered

VIEW = FrameView(np.array([0]), None, (32, 32))


def playlists(name: str) -> dict[str, str]:
    """What FFmpeg takes for a playlist or a list of parts, each of which names ``name``."""
    return {
        "ffconcat": f"ffconcat version 1.0\nfile {name}\n",
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{name}\n#EXT-X-ENDLIST\n",
        "hls of hls": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{name}\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT5S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="0" '
        f'bandwidth="1"><BaseURL>{name}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "imf": f"<?xml?><CompositionPlaylist>{name}</CompositionPlaylist>",
    }


PLAYLISTS = tuple(playlists(""))
SUFFIXES = (".mp4", ".ts", ".m3u8", ".ffconcat", ".mpd", ".sdp", "")


@pytest.fixture(scope="module")
def decoder() -> IsolatedDecoder:
    return IsolatedDecoder(DecodeConfig(backend="pyav"))


def nobody_reads(fifo: Path) -> bool:
    """Whether no process holds the reading end of a FIFO, or waits for its writer."""
    try:
        os.close(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
    except OSError as error:
        return error.errno == errno.ENXIO
    return False


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_is_no_video(kind: str, suffix: str, decoder: IsolatedDecoder, tmp_path: Path) -> None:
    """Neither by decoding nor by probing; the file that it names is a FIFO, at which an open would wait."""
    fifo, path = tmp_path / "private.ts", tmp_path / f"list{suffix}"
    os.mkfifo(fifo)
    path.write_text(playlists(fifo.name)[kind])
    before = decoder.children_lost
    for ask in (lambda: decoder.decode(path, [VIEW]), lambda: decoder.probe(path), lambda: decoder.validate(path)):
        with pytest.raises(DecodeError) as refusal:
            ask()
        assert refusal.value.reason == "not_a_video"
    assert decoder.children_lost == before
    assert nobody_reads(fifo)


@pytest.mark.parametrize("backend", ["auto", "decord", "pyav"])
def test_the_video_that_a_playlist_names_is_not_shown(backend: Backend, tmp_path: Path) -> None:
    private = write_numbered(tmp_path / "private.ts", 8)
    with IsolatedDecoder(DecodeConfig(backend=backend)) as decoder:
        assert decoder.decode(private, [VIEW])[0].any()
        for kind, content in playlists(private.name).items():
            for path in (tmp_path / f"{kind}.mp4", tmp_path / f"{kind}.m3u8"):
                path.write_text(content)
                with pytest.raises(DecodeError, match=r"^not_a_video"):
                    decoder.decode(path, [VIEW])
            with pytest.raises(DecodeError, match=r"^not_a_video"):
                decoder.decode(content.encode(), [VIEW])


def test_a_playlist_is_not_stored(tmp_path: Path) -> None:
    private = write_numbered(tmp_path / "private.mp4", 8)
    path = tmp_path / "list.mp4"
    path.write_text(f"ffconcat version 1.0\nfile {private.name}\n")
    with (
        IsolatedTranscoder(TranscodeConfig(), DecodeConfig()) as transcoder,
        pytest.raises(DecodeError, match=r"^not_a_video: format not accepted: concat$"),
    ):
        list(transcoder.process(path))


def test_a_list_that_names_itself_opens_nothing(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    for kind, content in playlists("list.mp4").items():
        path = tmp_path / "list.mp4"
        path.write_text(content)
        before, began = set(os.listdir("/proc/self/fd")), time.monotonic()
        with pytest.raises(DecodeError, match=r"^not_a_video"):
            open_media(str(path))
        assert set(os.listdir("/proc/self/fd")) == before, kind
        with pytest.raises(DecodeError, match=r"^not_a_video"):
            decoder.decode(path, [VIEW])
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "name",
    [
        "concat:{0}|{0}", "concatf:{0}", "subfile,,start,0,end,0,,:{0}", "async:file:{0}", "cache:file:{0}",
        "crypto:file:{0}", "file,{0}", "data:video/mp4;base64,AAAA", "pipe:0", "fd:", "http://127.0.0.1:9/v.mp4",
        "tcp://127.0.0.1:9", "rtp://127.0.0.1:9", "unix:{0}", "md5:{0}", "gopher://127.0.0.1:9/", "srtp://127.0.0.1:9",
    ],
)  # fmt: skip
def test_a_name_is_a_file_and_no_protocol(name: str, tmp_path: Path) -> None:
    """FFmpeg takes what stands before a colon for a protocol; a list decides the names of files."""
    with pytest.raises(DecodeError, match=r"^not_a_video"):
        open_media(name.format(write_numbered(tmp_path / "v.mp4", 2)))


def test_a_pattern_of_pictures_is_no_video(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    """FFmpeg reads ``%d`` in a name as numbers of files, and a picture as a video of one frame."""
    picture = b"\x89PNG\r\n\x1a\n" + bytes(1000)
    for name in ("picture1.png", "picture.mp4", "picture%d.png"):
        (tmp_path / name).write_bytes(picture)
        with pytest.raises(DecodeError, match=r"^not_a_video: format not accepted: (image2|png_pipe)"):
            decoder.probe(tmp_path / name)


def test_the_child_may_open_few_files(decoder: IsolatedDecoder, tmp_path: Path) -> None:
    decoder.probe(write_numbered(tmp_path / "v.mp4", 4))
    assert decoder._child is not None
    limits = Path(f"/proc/{decoder._child.process_id}/limits").read_text()
    (line,) = (line for line in limits.splitlines() if line.startswith("Max open files"))
    assert line.split()[3:5] == [str(OPEN_FILES)] * 2


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("absolute", [True, False])
def test_tracks_in_other_files_stay_closed(backend: Backend, absolute: bool, tmp_path: Path) -> None:
    """A movie whose ``dref`` names the file that the pictures lie in."""
    private = write_numbered(tmp_path / "private.mp4", 8, b_frames=0)
    path = tmp_path / "v.mp4"
    path.write_bytes(_with_pictures_elsewhere(private, str(private) if absolute else private.name))
    # With these options, which nothing of the product sets, FFmpeg would show them.
    with av.open(str(path), options={"enable_drefs": "1", "use_absolute_path": "1"}) as container:
        assert next(container.decode(video=0)).to_ndarray(format="rgb24").any()
    with IsolatedDecoder(DecodeConfig(backend=backend)) as decoder:
        assert decoder.decode(private, [VIEW])[0].any()
        with pytest.raises(DecodeError):
            decoder.decode(path, [VIEW])


def _with_pictures_elsewhere(movie: Path, name: str) -> bytes:
    """The index of a MOV alone, with an alias of another file (QuickTime's ``alis``) as its data reference."""
    content = movie.read_bytes()
    moov = content[content.index(b"moov") - 4 :]
    at = moov.index(b"dref") - 4
    end = at + int.from_bytes(moov[at : at + 4], "big")
    dref = _box(b"dref", bytes(4) + (1).to_bytes(4, "big") + _box(b"alis", _alias(name)))
    boxes = {kind: moov.index(kind) - 4 for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf")}
    changed = bytearray(moov[:at] + dref + moov[end:])
    for start in boxes.values():
        size = int.from_bytes(changed[start : start + 4], "big") + len(dref) - (end - at)
        changed[start : start + 4] = size.to_bytes(4, "big")
    return content[: content.index(b"mdat") - 4] + bytes(changed)


def _box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def _alias(name: str) -> bytes:
    """As ``mov_read_dref`` of FFmpeg reads it: volume, file name, levels, and the full path as an entry of type 2."""
    encoded = name.encode()
    short = encoded[-31:]
    head = (
        bytes(4) + bytes(10) + b"\x06volume".ljust(28, b"\0") + bytes(12) + bytes([len(short)]) + short.ljust(63, b"\0")
    )
    levels = bytes(16) + (1).to_bytes(2, "big") + (1).to_bytes(2, "big") + bytes(16)
    entry = (2).to_bytes(2, "big") + len(encoded).to_bytes(2, "big") + encoded + bytes(len(encoded) % 2)
    return head + levels + entry + b"\xff\xff\0\0"


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi"])
def test_what_decord_may_open_begins_as_a_container(suffix: str, tmp_path: Path) -> None:
    assert begins_as_container(str(write_numbered(tmp_path / f"v{suffix}", 4)))


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_no_playlist_begins_as_a_container(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_text(playlists("private.mp4")[kind])
    assert not begins_as_container(str(path))


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_no_playlist_reaches_the_network(kind: str, backend: Backend, tmp_path: Path) -> None:
    with listener() as server:
        (tmp_path / "list.mp4").write_text(playlists(f"{server.uri}/private.ts")[kind])
        with pytest.raises(DecodeError) as refusal:
            IsolatedDecoder(DecodeConfig(backend=backend)).decode(tmp_path / "list.mp4", [VIEW])
        assert refusal.value.reason == "not_a_video"
        assert not server.paths
