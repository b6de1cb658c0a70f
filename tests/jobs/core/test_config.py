"""The configuration tree: recipes, overrides, and errors that name key, value, rule and remedy."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml

from jobs.core.config import config_yaml, describe_keys, load_config
from jobs.core.errors import UserError
from jobs.demo.command import DemoConfig
from jobs.duplicates.command import DuplicatesConfig
from jobs.evaluate import EvaluateConfig
from jobs.prepare.command import PrepareConfig
from jobs.search import SearchConfig
from jobs.suggest.command import SuggestConfig
from jobs.sweep import plan
from jobs.sync import SyncConfig
from jobs.tag import TagConfig
from jobs.training.steps.finetune import FinetuneConfig
from jobs.training.steps.pretrain import PretrainConfig
from tests.jobs.recipes.golden import GOLDEN, recipes_of

COMMANDS = {
    "demo": DemoConfig,
    "duplicates": DuplicatesConfig,
    "evaluate": EvaluateConfig,
    "finetune": FinetuneConfig,
    "prepare": PrepareConfig,
    "pretrain": PretrainConfig,
    "search": SearchConfig,
    "suggest": SuggestConfig,
    "sync": SyncConfig,
    "tag": TagConfig,
}


@dataclass(frozen=True)
class Inner:
    """A slice."""

    rate: float = 0.5
    """A rate."""
    kind: Literal["calm", "wild"] = "calm"
    """A choice."""

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate={self.rate}: must not be negative; use 0.5")


@dataclass(frozen=True)
class Outer:
    """A tree."""

    name: str
    """A text."""
    sizes: tuple[int, ...] = (1, 2)
    """Several numbers."""
    note: str | None = None
    """Perhaps a text."""
    inner: Inner = field(default_factory=Inner)


def load(*arguments: str) -> Outer:
    return load_config(Outer, "nothing", arguments)


def test_overrides_go_over_recipe_over_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: from recipe\ninner:\n  rate: 8e-4\n  kind: wild\n")
    config = load(str(recipe), "inner.rate=0.25", "sizes=[3,4,5]")
    assert config == Outer("from recipe", (3, 4, 5), None, Inner(0.25, "wild"))


def test_a_recipe_may_build_on_a_key_that_comes_later(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("note: ${name}-run\n")
    assert load(str(recipe), "name=x").note == load("note=${name}-run", "name=x").note == "x-run"


@pytest.mark.parametrize("text", ["no", "0123", "1e3", "null-ish", "a: b"])
def test_text_stays_as_written(tmp_path: Path, text: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: '{text}'\n")
    assert load(f"name={text}").name == load(str(recipe)).name == text


def test_a_recipe_cannot_read_the_environment(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("name: ${oc.env:HOME}\n")
    with pytest.raises(UserError, match=r"oc\.env"):
        load(str(recipe))


def test_resolved_tree_reads_back_equal(tmp_path: Path) -> None:
    config = load("name=x", "inner.kind=wild", "sizes=[7]", "note=yes")
    (tmp_path / "again.yaml").write_text(config_yaml(config))
    assert load(str(tmp_path / "again.yaml")) == config


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["name=x", "inner.rat=1"], ["inner.rat=1", "no such key", "perhaps inner.rate is meant"]),
        (["name=x", "rate=1"], ["rate=1", "perhaps inner.rate is meant"]),
        (["name=x", "zebra=1"], ["zebra=1: no such key; --help"]),
        (["name=x", "inner.rate=-1"], ["inner.rate=-1", "must not be negative", "use 0.5"]),
        (["name=x", "inner.rate=fast"], ["inner.rate=fast: must be float"]),
        (["name=x", "inner.kind=odd"], ["inner.kind=odd", "calm", "wild"]),
        ([], ["name", "required", "name=..."]),
        (["no_such_recipe", "name=x"], ["no_such_recipe", "known"]),
        (["name=x", "stray"], ["stray", "key=value"]),
    ],
)
def test_mistakes_name_key_value_rule_remedy(arguments: list[str], told: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load(*arguments)
    assert all(part in str(caught.value) for part in told), str(caught.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_key_of_every_program_is_documented(command: str) -> None:
    undocumented = [key.key for key in describe_keys(COMMANDS[command]) if not key.text]
    assert not undocumented


def test_a_mistake_exits_with_2_and_no_traceback() -> None:
    command = [sys.executable, "-m", "jobs.pretrain", "demo", "data=/nowhere", "output=/tmp/x", "mask_ratio=1.5"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert answer.returncode == 2
    assert "mask_ratio=1.5" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_help_tells_the_defaults_that_a_program_gives_its_slices() -> None:
    defaults = {key.key: key.default for key in describe_keys(TagConfig)}
    assert defaults["decode.deadline_seconds"] == "30.0"  # of decoding elsewhere: 5.0
    assert defaults["whole_video.crops"] == "3"
    assert defaults["source"] == "(required)"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_recipe_of_any_editor(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "r.yaml").write_bytes("name: café\r\nsizes: [7]\r\n".encode(encoding))
    assert load(str(tmp_path / "r.yaml")) == Outer("café", (7,))


WORDS = ("no", "yes", "on", "007", "1e3", "null", "~", "1_000", "2024-01-01", "12:30", "0x1f", "true", "=", "a.b", "-1")


def test_labels_stay_text_in_lists_and_as_keys(tmp_path: Path) -> None:
    """On the command line, quoted or not, and in recipes; also in what `--print-config` writes."""
    required = ("source=/v", "init=/i", "output=/o")

    def tag(*arguments: str) -> TagConfig:
        return load_config(TagConfig, "tag", arguments)

    table = dict.fromkeys(WORDS, 0.25)
    plain, quoted = ", ".join(WORDS), ", ".join(f'"{word}"' for word in WORDS)
    for listed in (plain, quoted):
        by_label = ", ".join(f"{word}: 0.25" for word in listed.split(", "))
        config = tag(*required, f"labels=[{listed}]", f"thresholds={{{by_label}}}")
        assert (config.labels, config.thresholds) == (WORDS, table)
        by_label = "".join(f"  {word}: 0.25\n" for word in listed.split(", "))
        (tmp_path / "r.yaml").write_text(f"labels: [{listed}]\nthresholds:\n{by_label}")
        assert tag(str(tmp_path / "r.yaml"), *required) == config
    dotted = [f"thresholds.{word}=.25" for word in WORDS if word != "="]
    assert tag(*required, "thresholds={=: 0.25}", *dotted).thresholds == table
    assert tag(str(tmp_path / "r.yaml"), *required, "thresholds.no=0.5").thresholds == table | {"no": 0.5}
    assert tag(str(tmp_path / "r.yaml"), *required, "thresholds={no: 5e-1}").thresholds == {"no": 0.5}
    (tmp_path / "printed.yaml").write_text(config_yaml(config))
    assert tag(str(tmp_path / "printed.yaml")) == config
    printed = yaml.safe_load(config_yaml(config))  # as other readers of YAML 1.1 see it
    assert (tuple(printed["labels"]), printed["thresholds"]) == (WORDS, table)


@pytest.mark.parametrize(
    "argument", ["labels=no", "labels=[a: b]", "thresholds={no: high}", "thresholds.no=high", "thresholds=[no]"]
)
def test_a_value_of_another_form_is_refused(argument: str) -> None:
    with pytest.raises(UserError, match=r"must be|--help"):
        load_config(TagConfig, "tag", ["source=/v", "init=/i", "output=/o", argument])


@pytest.mark.parametrize("argument", ["source=/videos/\udcff", 'labels=["\\ud800"]'])
def test_what_is_no_unicode_is_refused(argument: str) -> None:
    """Bytes of a file name, and half of a character in YAML: neither could be written to `config.yaml`."""
    with pytest.raises(UserError, match=r"^(source|labels).*\\ud[8c].*: must be Unicode text; rename") as refused:
        load_config(TagConfig, "tag", ["source=/v", "init=/i", "output=/o", argument])
    assert str(refused.value).isascii()


# Every recipe resolves to what it did; see `tests.jobs.recipes.golden` for a change that is meant.


@pytest.mark.parametrize("command", plan.COMMANDS)
def test_recipes_are_the_golden_ones(command: str) -> None:
    assert recipes_of(command) == json.loads(GOLDEN.read_text())[command]


def test_every_public_name_is_there() -> None:
    sizes = ("base", "base_plus", "large", "huge")
    names = {f"{name}_{size}" for name in ("k400", "k600", "k700", "ssv2") for size in sizes}
    chains = {f"k400_to_ssv2_{size}" for size in sizes} | {"ssv2_large_32frames"}
    golden = {command: set(recipes) - {"(defaults)"} for command, recipes in json.loads(GOLDEN.read_text()).items()}
    images = {f"in1k_{size}" for size in ("tiny", "small", *sizes)} | {"imagenet", "demo_images"}
    transferred = ("inat17", "inat18", "inat19", "places365")
    transfer = {f"{name}_{size}" for name in transferred for size in (*sizes, "huge_448")}
    scratch = {f"in1k_scratch_{size}" for size in ("tiny", "small", "base", "large")} | {"k400_scratch_base"}
    files = {"transfer", "imagenet_scratch", "kinetics_scratch"}
    assert golden["pretrain"] == names | images | {"demo", "kinetics", "ssv2"}
    assert golden["finetune"] == golden["pretrain"] | chains | transfer | scratch | files
    assert golden["evaluate"] == {"demo", "in1k", "k400", "k600", "k700", "ssv2", "ssv2_two_clips"}
    assert golden["prepare"] == golden["tag"] == {"demo"}
