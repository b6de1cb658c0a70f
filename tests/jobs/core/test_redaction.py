"""Secrets planted wherever a person may put them, and looked for wherever the programs write."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.core.config import config_dict, config_yaml, load_config
from jobs.core.redaction import without_secrets
from jobs.runs.tracking import TrackingConfig
from jobs.training.job import plan_job
from jobs.training.pretrain_step import PretrainConfig, PretrainPhase
from tests.support.run_output import SmallConfig
from tests.support.small_set import small_prepared_set

PASSWORD, SECRET = "hunter2-in-a-uri", "wJalrXUtnFEMI/K7MDENG/planted"
URI = f"http://someone:{PASSWORD}@127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"see {URI}/x?a=1", "see http://127.0.0.1:9/x?a=1"),
        ("http://me:p@ss:w@rd@host/x", "http://host/x"),
        ("postgresql://u:p@db/mlflow", "postgresql://db/mlflow"),
        ("https://h/x?X-Amz-Signature=abcdef&a=1", "https://h/x?X-Amz-Signature=***&a=1"),
        ("http://h/?access_token=abc and more", "http://h/?access_token=*** and more"),
        ("s3://bucket/name@host/clip.mp4", "s3://bucket/name@host/clip.mp4"),
        ("mail a@b.c about https://h/x", "mail a@b.c about https://h/x"),
    ],
)
def test_credentials_in_places(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


def test_the_environments_secrets_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "abc")  # too short to be told from innocent text
    assert without_secrets(f"signed with {SECRET}: abc") == "signed with ***: abc"


def test_the_resolved_configuration_shows_none() -> None:
    config = SmallConfig("s3://key:secret@bucket/set", TrackingConfig(URI))
    assert config.tracking.uri == URI  # the program itself still has it
    for text in (config_yaml(config), str(config_dict(config))):
        assert PASSWORD not in text
        assert "key:secret" not in text
        assert "http://127.0.0.1:9" in text


@pytest.mark.parametrize("arguments", [["--print-config"], ["mask_ratio=9"], ["--dry-run"]])
def test_no_secret_is_printed(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.pretrain", "demo", *arguments, f"tracking.uri={URI}"]
    places = [f"data=s3://someone:{PASSWORD}@nowhere/set", f"output={tmp_path / 'out'}"]
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
                   "AWS_ACCESS_KEY_ID": SECRET, "AWS_MAX_ATTEMPTS": "1"}  # fmt: skip
    done = subprocess.run([*command, *places], capture_output=True, text=True, env=environment, check=False, timeout=60)
    printed = done.stdout + done.stderr
    assert printed
    assert PASSWORD not in printed
    assert SECRET not in printed


def test_workers_and_the_jobs_metadata_know_none(tmp_path: Path) -> None:
    prepared = small_prepared_set(tmp_path)
    keys = ["model=mae_hiera_test_8x64", "mask_ratio=0.75", "steps=3"]
    places = [f"data={prepared.uri}", f"output={tmp_path / 'out'}", f"tracking.uri={URI}"]
    config = load_config(PretrainConfig, "pretrain", [*keys, *places])
    job = plan_job("pretrain", "key", config, PretrainPhase(config), prepared)
    assert config.tracking.uri == URI
    assert PASSWORD not in repr(job)
    assert PASSWORD.encode() not in pickle.dumps(job)


def test_a_traceback_shows_none() -> None:
    program = (
        f"from jobs.core.redaction import clean_tracebacks\nclean_tracebacks()\nraise OSError('no answer of {URI}')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "no answer of http://127.0.0.1:9" in done.stderr
    assert PASSWORD not in done.stderr
