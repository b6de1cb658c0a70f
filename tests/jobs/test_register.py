"""A classifier in the registry: stored without a pickle, loaded away from this checkout, and as good as `tag`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient
from mlflow.models import Model
from safetensors.torch import load_file

from hiera_video.models.presets import create_model
from hiera_video.weights.checkpoint_files import save_model
from jobs.core.errors import UserError
from jobs.core.init_source import initial_metadata, links_of
from jobs.register import RegisterConfig, run
from jobs.runs.tracking_config import TrackingConfig
from jobs.scoring.classifier import Classifier, find_classifier
from jobs.synthetic.motion_videos import MOTION_CLASSES, render_motion_videos
from jobs.weights.registry import initial_file
from pipeline.decode.config import TimeView
from pipeline.decode.decoder import IsolatedDecoder
from pipeline.sampling import center_crop
from pipeline.tagging.windows import WindowGrid, window_times
from tests.support.mlflow_server import MlflowServer

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

GRID = WindowGrid(0.7, 0.5)
# Without `site` no editable install is seen, so this checkout's packages are not there but for the model's own.
ELSEWHERE = """
import json, sys
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
frames = np.load(sys.argv[2])
video = model.unwrap_python_model().predict(None, sys.argv[3])
bad = model.unwrap_python_model().predict(None, sys.argv[2])
import hiera_video, pipeline
def refused(given):
    try:
        model.predict(given)
    except mlflow.exceptions.MlflowException:
        return True
    return False
paths = (sys.argv[3], "file://" + sys.argv[3], [sys.argv[3]], np.array([sys.argv[3]]), {"path": sys.argv[3]})
print(json.dumps({
    "frames": model.predict(frames).to_dict("records"),
    "video": video.to_dict("records"),
    "bad": bad["status"].tolist(),
    "code": [hiera_video.__file__, pipeline.__file__],
    "jobs": "jobs" in sys.modules,
    "refused": [refused(given) for given in paths],
}))
"""


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The output of a fine-tuning run, registered."""
    folder = tmp_path_factory.mktemp("register")
    torch.manual_seed(0)
    facts = {"classes": json.dumps(MOTION_CLASSES), "command": "finetune", "run_id": "f1"}
    model = create_model("hiera_test_8x64", head_init_scale=10.0)
    (folder / "tuned").mkdir()
    save_model(folder / "tuned" / "model.safetensors", model, facts)
    return folder, run(RegisterConfig(init=str(folder / "tuned"), name="motion", alias="best",
                                      window_seconds=0.7, hop_seconds=0.5))  # fmt: skip


def local_model(folder: Path) -> Path:
    (found,) = folder.rglob("MLmodel")
    return found.parent


def test_a_version_tells_what_it_takes_and_gives(registered: tuple[Path, dict[str, Any]]) -> None:
    folder, report = registered
    assert (report["uri"], report["version"]) == ("models:/motion@best", "1")
    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}", f"sqlite:///{folder / 'mlflow.db'}")
    assert client.get_model_version_by_alias("motion", "best").run_id == report["run_id"]
    assert client.get_run(report["run_id"]).data.tags["finetune_run_id"] == "f1"
    model = Model.load(str(local_model(folder)))
    assert model.signature.inputs.to_dict() == [
        {"type": "tensor", "tensor-spec": {"dtype": "uint8", "shape": (-1, 8, 64, 64, 3)}}
    ]
    assert model.signature.outputs.input_names() == list(MOTION_CLASSES)
    assert model.metadata["classes"] == list(MOTION_CLASSES)
    assert not [path for path in local_model(folder).rglob("*") if path.suffix in (".pkl", ".pickle", ".pt", ".pyc")]
    assert "+" not in (local_model(folder) / "requirements.txt").read_text()


def test_it_serves_as_init(registered: tuple[Path, dict[str, Any]]) -> None:
    folder, report = registered
    tracking = TrackingConfig(f"sqlite:///{folder / 'mlflow.db'}")
    with initial_file(report["uri"], tracking, None) as file:
        assert links_of(initial_metadata(file)) == {"finetune_run_id": "f1"}
        assert find_classifier(report["uri"], fetched=file).classes == MOTION_CLASSES
        weights, own = (load_file(path) for path in (file, folder / "tuned" / "model.safetensors"))
    assert all(torch.equal(weights[name], own[name]) for name in own)
    with pytest.raises(ValueError, match="init=models:/motion@best: must not be in the registry already"):
        RegisterConfig(init=report["uri"], name="again")


@pytest.mark.slow  # a server of its own
def test_it_serves_as_init_from_a_server_that_hands_artifacts_on(
    registered: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Nobody but the server knows where the file lies; when it is dead the message says so."""
    folder, server = registered[0], MlflowServer(tmp_path)
    tracking = TrackingConfig(server.uri)
    server.start()
    try:
        run(RegisterConfig(init=str(folder / "tuned"), name="motion", alias="best", tracking=tracking))
        with initial_file("models:/motion@best", tracking, None) as file:
            assert find_classifier("models:/motion@best", fetched=file).classes == MOTION_CLASSES
    finally:
        server.signal(signal.SIGKILL)
    dead = pytest.raises(UserError, match=r"does not give init=models:/motion@best: .*; check the server")
    with dead, initial_file("models:/motion@best", tracking, None):
        pass


def test_it_loads_elsewhere_and_answers_as_the_programs_do(
    registered: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, _ = registered
    (video,) = render_motion_videos(tmp_path, 1, seed=1, size=64, num_frames=50)
    expected, spans, clips = answers(folder / "tuned", video.path)
    np.save(tmp_path / "frames.npy", clips)
    site = Path(np.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", ELSEWHERE, str(local_model(folder)), str(tmp_path / "frames.npy"), video.path],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(site), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert all(str(local_model(folder)) in place for place in answer["code"])
    assert not answer["jobs"]
    for rows in (answer["frames"], answer["video"]):
        np.testing.assert_allclose([[row[name] for name in MOTION_CLASSES] for row in rows], expected, rtol=1e-5)
    np.testing.assert_allclose([(row["start_seconds"], row["end_seconds"]) for row in answer["video"]], spans)
    assert answer["bad"] == ["not_a_video"]
    assert answer["refused"] == [True] * 5  # what a served model gets, too: it takes frames alone


@pytest.mark.slow  # a server of its own
def test_it_is_served(registered: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, report = registered
    (video,) = render_motion_videos(tmp_path, 1, seed=2, size=64, num_frames=50)
    expected, _, clips = answers(folder / "tuned", video.path)
    with serving(report["uri"], f"sqlite:///{folder / 'mlflow.db'}") as address:
        given = ask(address, {"inputs": clips.tolist()})
        np.testing.assert_allclose([[row[name] for name in MOTION_CLASSES] for row in given], expected, rtol=1e-5)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(address, {"inputs": clips[:, :4].tolist()})
        path = str(video.path)
        split = {"columns": ["path"], "data": [[path]]}
        for question in ({"inputs": path}, {"inputs": [path]}, {"instances": [path]}, {"dataframe_split": split}):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                ask(address, question)


@contextmanager
def serving(model: str, tracking_uri: str) -> Iterator[str]:
    """`mlflow models serve` on loopback, as the README shows it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = ["--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local", *place],
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # MLflow starts uvicorn by its name
            "MLFLOW_TRACKING_URI": tracking_uri,
            "MLFLOW_REGISTRY_URI": tracking_uri,  # MLflow has set it to where this process registered last
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        ends_at = time.monotonic() + 120
        while not answers_ping(port):
            assert time.monotonic() < ends_at
            assert server.poll() is None
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        family = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        for member in family:
            member.kill()
        server.wait(30)


def answers_ping(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(address: str, question: dict[str, Any]) -> list[dict[str, float]]:
    request = urllib.request.Request(
        address, json.dumps(question).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        given: list[dict[str, float]] = json.load(answer)["predictions"]
    return given


def answers(init: Path, video: Path) -> tuple[np.ndarray, list[tuple[float, float]], np.ndarray]:
    """Scores, windows and frames of a video, as `jobs.tag` has them (see its own tests)."""
    with IsolatedDecoder() as decoder:
        info = decoder.probe(video)
        assert info.duration_seconds is not None
        spans = [GRID.span(index, info.duration_seconds) for index in range(int(GRID.count(info.duration_seconds)))]
        crop = center_crop(info.height, info.width)
        times = [window_times(span, info.duration_seconds / info.num_frames, 8) for span in spans]
        clips = np.stack(decoder.decode(video, [TimeView(each, crop, (64, 64)) for each in times]))
    scores = Classifier(str(init), "fp32", use_gpu=False).score(clips)[0]
    assert scores.max() > 0.2  # not flat, so that a difference shows
    return scores, spans, clips


def test_mistakes(registered: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = registered
    tuned = str(folder / "tuned")
    with pytest.raises(UserError, match="name=a/b: MLflow refuses it"):
        run(RegisterConfig(init=tuned, name="a/b"))
    for alias in ("v1", "Latest", "a b", ""):
        with pytest.raises(ValueError, match=f"alias={alias}: must consist of"):
            RegisterConfig(init=tuned, name="motion", alias=alias)
    with pytest.raises(UserError, match=r"tracking\.uri: is required"):
        run(RegisterConfig(init=tuned, name="motion", tracking=TrackingConfig("none")))
    save_model(tmp_path / "model.safetensors", create_model("mae_hiera_test_8x64"))
    with pytest.raises(UserError, match="not a classifier"):
        run(RegisterConfig(init=str(tmp_path), name="motion"))
