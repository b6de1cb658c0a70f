"""The configuration of Ray's cluster launcher fits Ray's own schema, and keeps what the other deployments keep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

TEXT = (Path(__file__).resolve().parents[2] / "infra" / "aws" / "cluster.yaml").read_text()


def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(TEXT)
    return found


def test_it_fits_rays_schema() -> None:
    validate_config(prepare_config(config()))


def test_a_misspelt_key_is_seen() -> None:
    changed = config()
    changed["idle_timeout_minuts"] = 5
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(changed))


def test_the_head_takes_no_work_and_workers_are_spot_machines_that_may_shrink_to_nothing() -> None:
    types = config()["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    for name in ("cpu", "gpu"):
        assert types[name]["min_workers"] == 0 < types[name]["max_workers"]
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_a_token_is_asked_for_and_no_key_is_there() -> None:
    assert TEXT.count("RAY_AUTH_MODE=token") == 2
    assert config()["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert not re.search(r"ACCESS_KEY|SECRET|PASSWORD", TEXT, re.IGNORECASE)


def test_images_do_not_move_and_grace_times_fit_two_minutes() -> None:
    images = re.findall(r"_image: (\S+)", TEXT)
    assert len(images) == 3
    assert all(re.fullmatch(r"[\w./-]+:\d+\.\d+\.\d+-(cpu|cuda)", image) for image in images)
    (drain,) = re.findall(r"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=(\d+)", TEXT)
    assert 60 <= int(drain) < 120
