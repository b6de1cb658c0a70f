"""YAML is data: no tag builds an object or runs code, no alias makes it endless, no resolver reads the environment."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from jobs.core.config import load_config
from jobs.core.errors import UserError
from jobs.core.yaml_text import parse_yaml
from jobs.demo.command import DemoConfig
from jobs.planning.prices import read_prices
from jobs.weights.model_config import overridden_config

TAGS = (
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{path}]]",
    "!!python/object/new:os.system ['touch {path}']",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/object:jobs.demo.DemoConfig {{}}",
)


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_builds_nothing(tag: str, tmp_path: Path) -> None:
    touched, recipe = tmp_path / "touched", tmp_path / "recipe.yaml"
    text = f"source: {tag.format(path=touched)}\n"
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        parse_yaml(text)
    recipe.write_text(text)
    try:
        config = load_config(DemoConfig, "demo", [str(recipe)])
    except UserError:
        config = None  # a list is no path
    assert config is None or isinstance(config.source, str | None)
    assert not touched.exists()


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}"])
def test_a_value_within_itself_is_refused(text: str) -> None:
    with pytest.raises(yaml.YAMLError, match="values with its aliases followed"):
        parse_yaml(text)


def test_aliases_of_aliases_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "recipe.yaml").write_text("\n".join(lines))
    started = time.monotonic()
    with pytest.raises(UserError, match="values with its aliases followed"):
        load_config(DemoConfig, "demo", [str(tmp_path / "recipe.yaml")])
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("text", ["[" * 50_000, "{a: " * 50_000, "- " * 50_000])
def test_deep_nesting_is_no_traceback(text: str) -> None:
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)


@pytest.mark.parametrize("value", ["${oc.env:PLANTED}", "${oc.env:PLANTED,default}", "${env:PLANTED}"])
def test_no_resolver_reads_the_environment(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "planted-in-the-environment")
    (tmp_path / "recipe.yaml").write_text(f"source: {value}\n")
    with pytest.raises(UserError, match="source") as refused:
        load_config(DemoConfig, "demo", [str(tmp_path / "recipe.yaml")])
    assert "planted-in-the-environment" not in str(refused.value)


@pytest.mark.parametrize(
    "value", ["${oc.env:PLANTED}", "${oc.decode:${oc.env:PLANTED}}", "${steps}", "!!python/name:os.system"]
)
def test_what_a_strangers_files_hold_stays_text(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prices, and the configuration of a run whose weights are taken: a message without the value of any variable."""
    monkeypatch.setenv("PLANTED", "24")
    (tmp_path / "prices.yaml").write_text(f"gpu_hour: {value}\n")
    with pytest.raises(UserError, match="prices"):
        read_prices(str(tmp_path / "prices.yaml"), "h100")
    for key in ("embed_dim", "stages", "interpolation", "sep_pos_embed", "head_dropout"):
        with pytest.raises((UserError, ValueError)) as refused:
            overridden_config("hiera_test_8x64", {key: value})
        assert "24" not in str(refused.value)


def test_resolvers_only_look_into_the_configuration() -> None:
    known = {"oc.create", "oc.decode", "oc.deprecated", "oc.select", "oc.dict.keys", "oc.dict.values"}
    assert {name for name in (*known, "oc.env") if OmegaConf.has_resolver(name)} == known
