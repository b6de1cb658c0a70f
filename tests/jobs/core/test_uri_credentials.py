"""Credentials in URIs, whatever characters they have and wherever they stand."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.core.uri_credentials import is_secret_name, is_server, passwords_in, refusal, same_server, without_credentials


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("http://me:pa/ss@host:5000/x", "http://host:5000/x"),
        ("http://me:pa'ss@host/x", "http://host/x"),
        ('http://me:pa"ss w/ord@host/x', "http://host/x"),
        ("a http://u:p@h1/x and http://v:q@h2/y", "a http://h1/x and http://h2/y"),
        ("http://TOKEN@host/x", "http://host/x"),
        ("mysql+pymysql://u:p@db/mlflow?ssl_key=k", "mysql+pymysql://db/mlflow?ssl_key=***"),
        (
            "see https://a.blob/c/v.mp4?sv=2022-11-02&sr=b&sig=aGk%3D.",
            "see https://a.blob/c/v.mp4?sv=***&sr=***&sig=***.",
        ),
        ("https://h/hook?SECRETPART", "https://h/hook?***"),
        ("https://h/#access_token=abc", "https://h/#access_token=***"),
        ("https://h/x?run_id=ab&page=2", "https://h/x?run_id=ab&page=2"),
        # Neither credentials nor changed:
        ("http://host:5000: does not give init=models:/n@champion; check", None),
        ("http://host: no answer (a@b.c)", None),
        ("http://[::1]:5000/a@b", None),
        ("http://host:5000/a@b", None),
        ("sqlite:////a:b@c/mlflow.db", None),
        ("s3://bucket/what?.mp4", None),
    ],
)
def test_credentials_leave_a_text(text: str, clean: str | None) -> None:
    assert without_credentials(text) == (text if clean is None else clean)


@given(st.text(st.characters(exclude_characters="\n@", codec="utf-8")), st.sampled_from(["", "/x", ":80/x"]))
def test_no_password_survives(password: str, path: str) -> None:
    password = f"p{password.replace('://', '')}"  # begins unlike a port or the end of a sentence
    text = f"no answer of http://user:{password}@host{path}"
    assert without_credentials(text) == f"no answer of http://host{path}"


@given(st.lists(st.sampled_from([*"a@:/?#&= '\"[1.", "://", "http://", "token="]), max_size=30).map("".join))
def test_a_second_pass_finds_nothing_more(text: str) -> None:
    clean = without_credentials(text)
    assert without_credentials(clean) == clean


@pytest.mark.parametrize("text", ["a" * 200_000, "http://" * 20_000, "http://a:b@" * 20_000, "x=" * 50_000])
def test_long_texts_take_no_time(text: str) -> None:
    started = time.monotonic()
    without_credentials(text)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("api_key", True), ("OPENAI_API_KEY", True), ("apiKey", True), ("X-Amz-Signature", True), ("sig", True),
        ("MLFLOW_TRACKING_PASSWORD", True), ("mysslpassword", True), ("HF_TOKEN", True), ("AWS_ACCESS_KEY_ID", True),
        ("num_tokens", False), ("run_key", False), ("RAY_AUTH_MODE", False), ("AWS_WEB_IDENTITY_TOKEN_FILE", False),
        ("mask_token_shapes", True), ("learning_rate", False), ("PWD_SHOWN_PATH", False),
    ],
)  # fmt: skip
def test_names_of_secrets(name: str, secret: bool) -> None:
    assert is_secret_name(name) == secret


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("http://me:pw@host", "MLFLOW_TRACKING_PASSWORD"),
        ("https://token@host", "MLFLOW_TRACKING_TOKEN"),
        ("postgresql://me:pw@db/x", "MLFLOW_TRACKING_URI"),
        ("postgresql://db/x?password=pw", "MLFLOW_TRACKING_URI"),
        ("s3://key:secret@bucket/x", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_password_is_refused_with_the_variable_to_set(uri: str, remedy: str) -> None:
    assert remedy in str(refusal(uri))


@pytest.mark.parametrize("uri", ["http://host:5000", "postgresql://me@db/x", "s3://b/a@c", "sqlite:////a:b@c", "/a@b"])
def test_a_uri_without_a_password_is_taken(uri: str) -> None:
    assert refusal(uri) is None


def test_passwords_are_found_raw_and_decoded() -> None:
    assert passwords_in("postgresql://u:p%2Fw%20d@db/x") == {"p%2Fw%20d", "p/w d"}
    assert passwords_in("https://h/x?sig=a%3D&run_id=1") == {"a%3D", "a="}


def test_servers() -> None:
    assert all(map(is_server, ("http://h", "postgresql+psycopg2://h/x", "s3://b/x")))
    assert not any(map(is_server, ("sqlite:////x.db", "file:///x", "/x", "none", "models:/n/1")))
    assert same_server("http://h:1/", "http://me:pw@h:1")
    assert not same_server("http://h:1", "http://h:2")
    assert not same_server("http://h:1", None)
