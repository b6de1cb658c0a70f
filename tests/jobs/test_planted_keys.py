"""Keys planted in the environment of whole commands, and sought in all that these leave, print and start.

Also where something fails: a dead MLflow server, an object that cannot be reached, a password in a URI.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import psutil
import pytest
import torch

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from tests.support.failing_server import failing_server
from tests.support.runs import command, pretrain_keys

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(2400)]

PLANTED = {
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
    "AWS_SECRET_ACCESS_KEY": "wJalr+planted/aws=secret",
    "AWS_SESSION_TOKEN": "planted//session+token==",
    "MLFLOW_TRACKING_USERNAME": "tracker",
    "MLFLOW_TRACKING_PASSWORD": "planted pass/w0rd'of\"MLflow",
    "RAY_AUTH_TOKEN": "planted-token-of-ray-0123456789",
    "HF_TOKEN": "hf_plantedOfAnotherService",
    "DATABASE_URL": "postgresql://someone:planted-of-a-database@host/db",
}
IN_A_URI = "planted-in-a-uri"
SECRETS = [
    *(value for name, value in PLANTED.items() if name not in ("AWS_ACCESS_KEY_ID", "MLFLOW_TRACKING_USERNAME")),
    "planted-of-a-database", IN_A_URI,
]  # fmt: skip
IN_CHILDREN = ("pipeline.decode.child", "pipeline.transcode.child", "pipeline.decode.images.child")


def forms(secret: str) -> set[bytes]:
    """As it is, as in URIs, in base64 alone and after a user's name, and as JSON and Python write it."""
    texts = {secret, quote(secret), quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1],
             repr(secret)[1:-1]}  # fmt: skip
    encoded = {base64.b64encode(f"{before}{secret}".encode()) for before in ("", "tracker:")}
    return {text.encode() for text in texts} | encoded | {one.rstrip(b"=") for one in encoded}


def found_in(content: bytes) -> list[str]:
    """The secrets that some text holds, in any form."""
    return [secret for secret in SECRETS if any(form in content for form in forms(secret))]


class Watch:
    """Looks at the environment of every decoding child of this process, and of Ray's workers, while they live."""

    def __init__(self) -> None:
        self.children: dict[int, bytes] = {}
        self.workers: dict[int, bytes] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.is_set():
            for process in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error, OSError):
                    words = process.cmdline()
                    environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                    if any(module in words for module in IN_CHILDREN):
                        self.children[process.pid] = environment
                    elif words and words[0].startswith("ray::"):
                        self.workers[process.pid] = environment
            time.sleep(0.05)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie below it, and its logs."""
    path = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def ran(folder: Path, module: str, *keys: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    """A command run to its end with the keys in its environment; what it prints has none of them."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {**PLANTED, "TMPDIR": str(folder / "tmp"), "RAY_TMPDIR": str(folder / "tmp"), **more}
    done = subprocess.run(
        command(module, *keys), env=environment, cwd=Path(__file__).parents[2], capture_output=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert not found_in(done.stdout), done.stdout.decode()
    assert not found_in(done.stderr), done.stderr.decode()
    return done


def test_planted_keys_stay_where_they_are(folder: Path) -> None:
    (folder / "tmp").mkdir()
    render_motion_videos(folder / "videos", 8, seed=2, size=64, num_frames=8)
    weights = {"classes": json.dumps(MOTION_CLASSES), "command": "finetune", "run_id": "f1"}
    save_model(folder / "model.safetensors", create_model("hiera_test_8x64"), weights)
    torch.save({"model_state": {}}, folder / "none.pth")
    store = f"tracking.uri=sqlite:///{folder}/mlflow.db"
    source, prepared = f"source={folder / 'videos'}", f"output={folder / 'set'}"
    tag = ["demo", source, f"init={folder / 'model.safetensors'}", f"output={folder / 'tag'}"]
    with failing_server("refuse") as dead, Watch() as watch:
        storage = {"AWS_ENDPOINT_URL": dead.url, "AWS_DEFAULT_REGION": "us-east-1"}
        assert ran(folder, "jobs.prepare", source, prepared, "workers=0", store).returncode == 0
        # A dead server costs no run; a secret in its address is refused, and does not come back in the message.
        train = pretrain_keys(folder / "set", folder / "pretrain", "steps=2")
        assert ran(folder, "jobs.pretrain", *train, f"tracking.uri={dead.url}").returncode == 0
        for log in ("text", "json"):
            uri = f"tracking.uri=http://someone:{IN_A_URI}@host"
            refused = ran(folder, "jobs.pretrain", *train, uri, f"log={log}")
            assert (refused.returncode, b"tracking.uri" in refused.stderr) == (2, True)
        in_environment = {"MLFLOW_TRACKING_URI": f"http://someone:{IN_A_URI}@127.0.0.1:{dead.url.rpartition(':')[2]}"}
        assert ran(folder, "jobs.compare", **in_environment).returncode != 0
        assert ran(folder, "jobs.tag", *tag, store).returncode == 0
        unreachable = ran(folder, "jobs.prepare", "source=s3://bucket/videos", f"output={folder / 'none'}", **storage)
        assert unreachable.returncode == 2
        failed = ran(folder, "jobs.tag", tag[1], f"init={folder / 'none.pth'}", f"output={folder / 'no'}", store)
        assert failed.returncode == 2
        sent = ran(folder, "jobs.sync", f"output={folder / 'pretrain'}", store, HIERA_LOG="json")
        assert sent.returncode == 0, sent.stderr
    assert watch.children
    assert watch.workers
    assert not {secret for environment in watch.children.values() for secret in found_in(environment)}
    assert not [pid for pid, environment in watch.workers.items() if b"MLFLOW_" in environment]
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"report.json", "mlflow.db", "run.json", "metrics.jsonl", "figures.json", "report.html"} <= names
    assert [path for path in files if "logs" in path.parts]  # Ray's own
    assert not {str(path.relative_to(folder)): found for path in files if (found := found_in(path.read_bytes()))}
