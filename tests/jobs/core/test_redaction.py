"""Secrets planted wherever a person may put them, and looked for wherever the programs write."""

from __future__ import annotations

import base64
import html
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.core.cli import replace
from jobs.core.config import config_dict, config_yaml, load_config
from jobs.core.errors import UserError
from jobs.core.redaction import public, without_secrets
from jobs.runs.tracking_config import TrackingConfig
from jobs.training.job import plan_job
from jobs.training.steps.pretrain import PretrainConfig, PretrainPhase
from tests.support.run_output import SmallConfig
from tests.support.small_set import small_prepared_set

PASSWORD, SECRET = "hunter2-in-a-uri", "wJalrXUtnFEMI/K7MDENG/planted"
URI = f"http://someone:{PASSWORD}@127.0.0.1:9"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"see {URI}/x?a=1", "see http://127.0.0.1:9/x?a=***"),
        ("http://me:p@ss:w@rd@host/x", "http://host/x"),
        ("postgresql://u:p@db/mlflow", "postgresql://db/mlflow"),
        ("https://h/x?X-Amz-Signature=abcdef&page=1", "https://h/x?X-Amz-Signature=***&page=1"),
        ("api_key=abcdef, num_tokens=196", "api_key=***, num_tokens=196"),
        ("--token=abc run_key=5", "--token=*** run_key=5"),
        ('{"password": "my pass", "a": 1}', '{"password": ***, "a": 1}'),
        ("Authorization: Basic dXNlcjpw and more", "Authorization: *** and more"),
        ("{'Authorization': 'Bearer abc def', 'x': 1}", "{'Authorization': ***, 'x': 1}"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=AK/x, SignedHeaders=a;b, Signature=c", "Authorization: ***"),
        ("sent Bearer abcdefghijkl", "sent Bearer ***"),
        ("x-api-key: abc", "x-api-key: ***"),
        ("RAY_AUTH_TOKEN: must be set", "RAY_AUTH_TOKEN: must be set"),
        ("http://h/?access_token=abc and more", "http://h/?access_token=*** and more"),
        ("s3://bucket/name@host/clip.mp4", "s3://bucket/name@host/clip.mp4"),
        ("mail a@b.c about https://h/x", "mail a@b.c about https://h/x"),
        ("Cookie: a=b; session=secret", "Cookie: ***"),
        ('Set-Cookie: id="x y"; Path=/; session=secret', "Set-Cookie: ***"),
        ("{'Cookie': 'a=b; session=secret', 'x': 1}", "{'Cookie': ***, 'x': 1}"),
        (r'PASSWORD="a\"b secret" x', "PASSWORD=*** x"),
        (r"PASSWORD='a\'b secret' x", "PASSWORD=*** x"),
        ("PASSWORD='a b\nnever closed", "PASSWORD=***\nnever closed"),
        ('{\\"password\\": \\"a b\\", \\"x\\": 1}', '{\\"password\\": ***, \\"x\\": 1}'),
        ("api_key: x", "api_key: ***"),
        ("  token: x\nworkers: 3", "  token: ***\nworkers: 3"),
        ("aws_secret_access_key = x", "aws_secret_access_key = ***"),
        ("passphrase: correct horse", "passphrase: ***"),
        ("with token: abc and more", "with token: *** and more"),
        ("if token == abc:", "if token == ***"),
        ("run --password abc --seed 1", "run --password *** --seed 1"),
        ("password=a,b;c, n=5", "password=***, n=5"),
        ('Authorization: Digest username="x", response="abc def"', "Authorization: ***"),
        ("SignatureDoesNotMatch: the request", "SignatureDoesNotMatch: the request"),
        ("NoAuthTokenError: none found", "NoAuthTokenError: none found"),
    ],
)
def test_credentials_in_places(text: str, clean: str) -> None:
    assert without_secrets(text) == clean


def test_the_environments_secrets_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "abc")  # too short to be told from innocent text
    assert without_secrets(f"signed with {SECRET}: abc") == "signed with ***: abc"


def encoded(secret: str) -> dict[str, str]:
    """A secret as programs write it."""
    basic = [base64.b64encode(f"{user}:{secret}".encode()).decode() for user in ("u", "me", "you")]
    return {
        "percent": urllib.parse.quote(secret),
        "percent, all": urllib.parse.quote(secret, safe=""),
        "percent, small letters": re.sub("%..", lambda code: code[0].lower(), urllib.parse.quote(secret)),
        "form": urllib.parse.quote_plus(secret),
        "JSON": json.dumps(secret)[1:-1],
        "Python": repr(secret)[1:-1],
        "base64": base64.b64encode(secret.encode()).decode(),
        "base64 of a URL": base64.urlsafe_b64encode(secret.encode()).decode(),
        **{f"basic {number}": text for number, text in enumerate(basic)},
    }


@pytest.mark.parametrize("secret", [SECRET, "with \"quotes\" and 'more'", "spaces and ümläuts/", "tab\tand \\ back"])
def test_encoded_forms_are_blotted_out(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", secret)
    for name, form in encoded(secret).items():
        clean = without_secrets(f"sent {form} to")
        assert "***" in clean, name
        assert form not in clean, name


SECRETS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=6, max_size=20)
"""What may stand in an environment variable."""


@settings(max_examples=300, deadline=None)
@example("pa://ss wor/d9")
@example("http://u:p@h/x?token=abcdef")
@example("a\"b'c\\ü<&>")
@given(SECRETS.filter(lambda secret: not Path(secret).is_absolute()))
def test_any_secret_of_the_environment_is_blotted_out(secret: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_PASSWORD", secret)
        for name, form in {"as it is": secret, **encoded(secret), **written(secret)}.items():
            clean = without_secrets(f"<{form}>")
            assert "***" in clean, name
            assert form not in clean or form in "<***>", name


def written(secret: str) -> dict[str, str]:
    """A secret within what other programs print."""
    return {
        "JSON, not ASCII": json.dumps(secret, ensure_ascii=False)[1:-1],
        "Python, both quotes": repr(f"'\"{secret}")[4:-1],
        "Python, bytes": repr(secret.encode())[2:-1],
        "HTML": html.escape(secret),
        "shell": shlex.quote(secret)[1:-1] if shlex.quote(secret) != secret else secret,
    }


def assigned(secret: str) -> dict[str, str]:
    """An assignment of a secret that no variable of the environment holds."""
    return {
        "JSON": json.dumps({"password": secret, "a": 1}),
        "JSON, not ASCII": json.dumps({"password": secret}, ensure_ascii=False),
        "JSON, pretty": json.dumps({"a": {"api_key": secret}}, indent=1),
        "JSON in JSON": json.dumps(json.dumps({"password": secret})),
        "Python": repr({"password": secret, "a": 1}),
        "call": f"connect(password={secret!r}, timeout=5)",
        "shell": f"PASSWORD={json.dumps(secret)} command",
        "TOML": f"aws_secret_access_key = {json.dumps(secret)}",
        "YAML": f"token: {json.dumps(secret)}",
        "option": f"--password {json.dumps(secret)} --seed 1",
        "cookie": json.dumps({"Cookie": f"a=b; session={secret}"}),
    }


@settings(max_examples=300, deadline=None)
@example('a"b secret')
@example("a'b\\")
@example("\\\\\"'x y")
@given(SECRETS)
def test_any_secret_that_is_assigned_is_hidden(secret: str) -> None:
    """Nothing but the assignment names it: what is printed does not depend on it."""
    for name, text in assigned(secret).items():
        assert without_secrets(text) == without_secrets(assigned("ordinary")[name]), name


UNQUOTED = st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters="'\"*"), min_size=6)


@given(UNQUOTED.filter(lambda secret: not secret.startswith("//")))
def test_lines_of_a_configuration_file_are_hidden_to_their_end(secret: str) -> None:
    for line in (f"token: {secret} {secret}", f"aws_secret_access_key = {secret} {secret}", f"Cookie: a={secret}; b=c"):
        assert without_secrets(f"{line}\nseed: 1").endswith("***\nseed: 1"), line
        assert secret not in without_secrets(line), line


def test_paths_are_shown_whatever_their_variable_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell sets PWD and OLDPWD: every command that is printed from there would lose its paths."""
    for name in ("PWD", "OLDPWD", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, str(tmp_path))
    assert without_secrets(f"output={tmp_path}/run") == f"output={tmp_path}/run"
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "/no/such/path")
    assert without_secrets("pw /no/such/path") == "pw ***"


def test_passwords_of_uris_in_the_environment_are_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hunter%2F2%20hunter@db/mlflow")
    for form in ("hunter%2F2%20hunter", "hunter/2 hunter"):
        assert without_secrets(f"password {form} refused") == "password *** refused"


def test_values_of_secret_keys_are_hidden() -> None:
    assert public({"api_key": "short", "a": ["http://u:p@h"], "tokens": 5}) == {
        "api_key": "***", "a": ["http://h"], "tokens": 5
    }  # fmt: skip


def test_the_resolved_configuration_shows_none() -> None:
    config = SmallConfig("s3://key:secret@bucket/set", TrackingConfig(URI))
    assert config.tracking.uri == URI  # the program itself still has it
    for text in (config_yaml(config), str(config_dict(config))):
        assert PASSWORD not in text
        assert "key:secret" not in text
        assert "http://127.0.0.1:9" in text


@pytest.mark.parametrize("arguments", [["--print-config"], ["--dry-run"]])
def test_no_secret_is_printed(arguments: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "jobs.pretrain", "demo", *arguments]
    places = [f"data={tmp_path / 'missing'}", f"output={tmp_path / 'out'}"]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": URI,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ACCESS_KEY_ID": SECRET,
    }
    done = subprocess.run([*command, *places], capture_output=True, text=True, env=environment, check=False, timeout=60)
    printed = done.stdout + done.stderr
    assert printed
    assert PASSWORD not in printed
    assert SECRET not in printed


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [(f"tracking.uri={URI}", "MLFLOW_TRACKING_PASSWORD"), (f"data=s3://k:{PASSWORD}@b/set", "AWS_SECRET_ACCESS_KEY")],
)
def test_a_password_in_an_argument_is_refused(argument: str, remedy: str) -> None:
    with pytest.raises(UserError, match=f"must not hold a password.*{remedy}") as refused:
        load_config(PretrainConfig, "pretrain", ["demo", "data=/set", "output=/out", argument])
    assert PASSWORD not in str(refused.value)


def test_a_recipe_does_not_choose_who_gets_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: demo\ntracking:\n  uri: http://stranger:5000\n")
    words = [str(recipe), "data=/set", "output=/out"]
    with pytest.raises(UserError, match=r"add tracking.uri=http://stranger:5000 to the command"):
        load_config(PretrainConfig, "pretrain", words)
    confirmed = load_config(PretrainConfig, "pretrain", [*words, "tracking.uri=http://stranger:5000"])
    assert confirmed.tracking.uri == "http://stranger:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://stranger:5000/")
    assert load_config(PretrainConfig, "pretrain", words).tracking.uri == "http://stranger:5000"


def test_workers_and_the_jobs_metadata_know_none(tmp_path: Path) -> None:
    prepared = small_prepared_set(tmp_path)
    keys = ["model=mae_hiera_test_8x64", "mask_ratio=0.75", "steps=3"]
    places = [f"data={prepared.uri}", f"output={tmp_path / 'out'}"]
    config = load_config(PretrainConfig, "pretrain", [*keys, *places])
    config = replace(config, tracking=TrackingConfig(URI))  # as MLFLOW_TRACKING_URI has it
    job = plan_job("pretrain", "key", config, PretrainPhase(config), prepared)
    assert config.tracking.uri == URI
    assert PASSWORD not in repr(job)
    assert PASSWORD.encode() not in pickle.dumps(job)
