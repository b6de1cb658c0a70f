"""One configuration tree: frozen dataclasses, a YAML recipe over them, `key=value` over both.

Every slice is declared beside what it configures; a command's configuration composes slices. Checks live in
``__post_init__`` as ``ValueError("key=value: rule; remedy")``; the loader adds the dotted path in front.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import json
import math
import os
import textwrap
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from jobs.core.errors import UserError
from jobs.core.redaction import public, without_secrets
from jobs.core.uri_credentials import is_server, refusal, same_server
from jobs.core.yaml_text import parse_yaml
from pipeline.storage.errors import first_line
from pipeline.storage.files import StorageError, read_text

RECIPES = Path(__file__).parents[1] / "recipes"
MOVED = {"view.size": "model_overrides.input_size", "view.num_frames": "model_overrides.input_size"}
TRACKING, TRACKING_VARIABLE = "tracking.uri", "MLFLOW_TRACKING_URI"
BASE = "base"  # the key by which a recipe names the one that it changes
ConfigT = TypeVar("ConfigT")

# A recipe may come from anyone: it must not read secrets from the environment.
OmegaConf.clear_resolver("oc.env")


def load_config(config_class: type[ConfigT], command: str, arguments: Sequence[str]) -> ConfigT:
    """Dataclass defaults ← recipe (optional first argument) ← ``key=value`` arguments.

    Raises:
        UserError: unknown recipe, unknown key, wrong type, a value outside its rule, a missing key, a password in a
            URI, a server that only the recipe names, what is no Unicode.
    """
    recipe, overrides = _split_arguments(command, arguments)
    tree = OmegaConf.structured(config_class)
    _thaw(tree)
    leaves = list(_recipe_leaves(config_class, command, recipe))
    _refuse_unconfirmed(leaves, overrides)
    for key, raw in [*leaves, *overrides]:
        _refuse_password(key, raw)
        _set(tree, config_class, key, raw)
    config = typing.cast(ConfigT, _instantiate(tree, ""))
    _refuse_halves_of_characters(config)
    return config


def config_yaml(config: Any) -> str:
    """The resolved tree as YAML, without secrets; it can be read back as a recipe."""
    return OmegaConf.to_yaml(OmegaConf.create(config_dict(config)))


def config_dict(config: Any) -> dict[str, Any]:
    """The resolved tree as plain nested dictionaries and lists, without secrets: it is printed and recorded."""
    return typing.cast(dict[str, Any], public(OmegaConf.to_container(OmegaConf.structured(config))))


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one dictionary of dotted keys."""
    return dict(_leaves(None, tree, prefix))


@dataclasses.dataclass(frozen=True)
class KeyHelp:
    """One configuration key as `--help` shows it."""

    key: str
    type_name: str
    default: str
    text: str


def describe_keys(config_class: type, prefix: str = "", slice_default: Any = None) -> Iterator[KeyHelp]:
    """Every dotted key of a configuration class with its type, default and documentation.

    Args:
        slice_default: the default of this slice in the class around it, where that differs from the class's own.
    """
    hints = _hints(config_class)
    texts = field_docs(config_class)
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint):
            inner = getattr(slice_default, field.name, None) or (None if _required(field) else _default(field))
            yield from describe_keys(typing.cast(type, hint), f"{prefix}{field.name}.", inner)
        else:
            default = getattr(slice_default, field.name) if slice_default else _default(field)
            shown = "null" if default is None else str(default)
            yield KeyHelp(prefix + field.name, _type_name(hint), shown, texts.get(field.name, ""))


@functools.cache
def _hints(config_class: type) -> dict[str, Any]:
    """Types of the fields; evaluating annotations takes a tenth of the time of reading a configuration."""
    return typing.get_type_hints(config_class)


def slices(config_class: type) -> Iterator[tuple[str, str]]:
    """Name of every slice of a configuration class, and its heading: the name and the slice's own docstring."""
    hints = _hints(config_class)
    for field in dataclasses.fields(config_class):
        if dataclasses.is_dataclass(hints[field.name]):
            summary = (inspect.getdoc(hints[field.name]) or "").partition("\n")[0].rstrip(".")
            yield field.name, f"{field.name}: {summary}"


def field_docs(config_class: type) -> dict[str, str]:
    """The string literal below each field of a dataclass, inherited fields included."""
    docs: dict[str, str] = {}
    for owner in reversed(config_class.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            match statement, following:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    docs[name] = inspect.cleandoc(text)
    return docs


def _split_arguments(command: str, arguments: Sequence[str]) -> tuple[str | None, list[tuple[str, str]]]:
    named = arguments[:1] if arguments and "=" not in arguments[0] else []
    rest = arguments[len(named) :]
    for argument in rest:
        if "=" not in argument:
            raise UserError(
                f"{argument!r}: must be key=value after the recipe; write `{command} [RECIPE] key=value ...`"
            )
    return next(iter(named), None), [(key, raw) for key, _, raw in (argument.partition("=") for argument in rest)]


def recipe_names(command: str) -> list[str]:
    """The recipes that ship with a command."""
    return sorted(_shipped_recipes(command))


@functools.cache
def _shipped_recipes(command: str) -> dict[str, list[dict[str, Any]]]:
    """Every recipe that ships with a command, by name, as the parts that it is made of; later ones win.

    A file is a recipe. A file with `names` describes a set, and every name with each of its `sizes` is a recipe too
    (`k400_large`), of four parts: the set, the size (`sizes.yaml`), the set's `sizes`, and what follows its name.
    """
    files = {path.stem: _read_yaml(path.stem, str(path)) for path in (RECIPES / command).glob("*.yaml")}
    sizes = files.pop("sizes", {})
    recipes = {}
    for stem, content in files.items():
        names, own_sizes = content.pop("names", {}), content.pop("sizes", {})
        recipes[stem] = [content]
        for name, size in itertools.product(names, own_sizes):
            recipes[f"{name}_{size}"] = [content, sizes.get(size, {}), own_sizes[size], names[name] or {}]
    return recipes


def _recipe_leaves(
    config_class: type, command: str, recipe: str | None, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, Any]]:
    """The leaves of a recipe, those of the recipe that it names as its ``base`` first."""
    if recipe is None:
        return
    if recipe in above:
        raise UserError(
            f"{BASE}={recipe}: must not lead back to itself ({' on '.join([*above, recipe])}); remove one {BASE}"
        )
    parts = _read_recipe(command, recipe)
    base = parts[0].get(BASE)
    if not isinstance(base, str | types.NoneType):
        raise UserError(f"recipe={recipe}: {BASE}={base}: must be one recipe; give its name, path or URI")
    yield from _recipe_leaves(config_class, command, base, (*above, recipe))
    for part in parts:
        yield from ((key, raw) for key, raw in _leaves(config_class, part, "") if key != BASE)


def _read_recipe(command: str, recipe: str) -> list[dict[str, Any]]:
    """The parts of a recipe by name, or the one of a file by its path or URI."""
    shipped = _shipped_recipes(command)
    if recipe in shipped:
        return shipped[recipe]
    if "/" not in recipe and not recipe.endswith((".yaml", ".yml")):
        known = ", ".join(sorted(shipped)) or "none"
        raise UserError(
            f"recipe={recipe}: no such recipe of {command}; known: {known}; or give the path or URI of a YAML file"
        )
    return [_read_yaml(recipe, recipe)]


def _read_yaml(recipe: str, path: str) -> dict[str, Any]:
    try:
        # BaseLoader keeps every leaf as its raw string, so that `label: no` stays "no" in a string field.
        content = parse_yaml(read_text(path), yaml.BaseLoader)
    except (StorageError, yaml.YAMLError) as error:
        raise UserError(
            f"recipe={recipe}: must be readable YAML: {error}; give a recipe name or a YAML file"
        ) from error
    if not isinstance(content, dict | types.NoneType):
        raise UserError(f"recipe={recipe}: must be a mapping, not a {type(content).__name__}; write `key: value` lines")
    return content or {}


def _leaves(config_class: type | None, node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and raw values; a table by label is one value, because a label may hold dots."""
    for key, value in node.items():
        is_table = _is_table(field_type(config_class, prefix + key))
        if isinstance(value, dict) and value and not is_table:
            yield from _leaves(config_class, value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _set(tree: DictConfig, config_class: type, key: str, raw: Any) -> None:
    hint = field_type(config_class, key)
    table, label = _label_in_table(config_class, key)
    try:
        value = _parse(hint, raw)
        OmegaConf.update(tree, table, value if label is None else {label: value}, merge=_is_part(label, raw))
    except (ConfigAttributeError, ConfigKeyError) as error:
        raise UserError(
            f"{key}={raw}: no such key{_did_you_mean(config_class, key)}; --help lists every key"
        ) from error
    except ValidationError as error:
        rule = f"must be {_type_name(hint)}" if hint else first_line(error)
        raise UserError(f"{key}={raw}: {rule}; --help lists every key") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{key}={raw}: {first_line(error)}; --help lists every key") from error
    except yaml.YAMLError as error:
        raise UserError(f"{key}={raw}: is not valid YAML; quote the value") from error


def _refuse_password(key: str, raw: Any) -> None:
    """The remedy of the refusal names the environment variable to set instead."""
    if isinstance(raw, str) and "://" in raw and (refused := refusal(raw)):
        raise UserError(f"{key}={without_secrets(raw)}: {refused}")


def _refuse_halves_of_characters(config: Any) -> None:
    """Bytes of a file name that are no UTF-8, and ``\\ud800`` in a recipe, can be neither printed nor recorded."""
    for key, value in flatten(config_dict(config)).items():
        text = f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = text.encode(errors="backslashreplace").decode()
            raise UserError(f"{found}: must be Unicode text; rename what it names") from error


def _refuse_unconfirmed(recipe: Sequence[tuple[str, Any]], overrides: Sequence[tuple[str, Any]]) -> None:
    """The server of a recipe, which anyone may have written, would get the user's password."""
    named = {key: raw for key, raw in recipe if key == TRACKING and isinstance(raw, str) and is_server(raw)}
    if (
        named
        and TRACKING not in dict(overrides)
        and not same_server(named[TRACKING], os.environ.get(TRACKING_VARIABLE))
    ):
        raise UserError(unconfirmed(named[TRACKING], "a recipe"))


def unconfirmed(uri: str, named_by: str) -> str:
    """What to do about a server that a file names and the user does not."""
    uri = without_secrets(uri)
    return (
        f"{TRACKING}={uri}: is named by {named_by} alone, and would get your MLflow password; add {TRACKING}={uri} to "
        f"the command to confirm it, or give another ({TRACKING}=none: no server)"
    )


def _did_you_mean(config_class: type, key: str) -> str:
    """The key that was probably meant: the same name in another slice, else the nearest spelling."""
    known = [described.key for described in describe_keys(config_class)]
    if (moved := MOVED.get(key)) is not None:
        return f", use {moved}"
    same = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]]
    near = same or difflib.get_close_matches(key, known, n=1)
    return f", perhaps {' or '.join(near[:3])} is meant" if near else ""


def _is_part(label: str | None, raw: Any) -> bool:
    """Whether a value is added to a table by label (a recipe's table or one label's value) instead of replacing it."""
    return label is not None or isinstance(raw, dict)


def _is_table(hint: Any) -> bool:
    """Whether a field holds one value by label, as `dict[str, float]`; its keys are text, whatever they look like."""
    return typing.get_origin(hint) is dict and typing.get_args(hint)[1] is not Any


def _label_in_table(config_class: type, key: str) -> tuple[str, str | None]:
    """A dotted key that ends in a label of a table: the table's key and the label, which may hold dots itself."""
    names = key.split(".")
    for end in range(1, len(names)):
        if _is_table(field_type(config_class, ".".join(names[:end]))):
            return ".".join(names[:end]), ".".join(names[end:])
    return key, None


def field_type(config_class: Any, key: str) -> Any:
    """The annotated type at a dotted key; None when the key does not exist or lies in a free dictionary."""
    for name in key.split("."):
        if _is_table(config_class):
            return typing.get_args(config_class)[1]
        if not dataclasses.is_dataclass(config_class):
            return None
        config_class = _hints(typing.cast(type, config_class)).get(name)
    return config_class


def _parse(hint: Any, raw: Any) -> Any:
    """Raw text → value. Text, also in lists and as labels, stays as written: YAML reads `no` as False, 0123 as 83."""
    if isinstance(raw, str) and typing.get_origin(hint) in (tuple, list, dict):
        node = parse_yaml(raw, yaml.BaseLoader)
        raw = node if isinstance(node, list | dict) else raw
    if isinstance(raw, list):
        element = next(iter(typing.get_args(hint)), None)
        return [_parse(element, item) for item in raw]
    if isinstance(raw, dict):
        return {key: _parse(typing.get_args(hint)[1] if _is_table(hint) else None, item) for key, item in raw.items()}
    if hint is str:
        return raw
    if hint == (str | None):
        return None if raw in ("null", "") else raw
    return _numbers(parse_yaml(raw)) if isinstance(raw, str) else raw


def _numbers(value: Any) -> Any:
    """YAML 1.1 reads `8e-4` as text, but it is meant as a number."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, str) and value[:1] in "0123456789+-.":
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _thaw(node: DictConfig) -> None:
    """OmegaConf makes the tree of a frozen dataclass read-only, each level by itself."""
    OmegaConf.set_readonly(node, False)
    for name in node:
        if not OmegaConf.is_missing(node, name) and isinstance(node[name], DictConfig):
            _thaw(node[name])


def _instantiate(node: DictConfig, path: str) -> Any:
    """Build children before parents, so that a failed check is reported with its dotted key."""
    for name in node:
        if not OmegaConf.is_missing(node, name) and dataclasses.is_dataclass(OmegaConf.get_type(node, str(name))):
            _instantiate(node[str(name)], f"{path}{name!s}.")
    try:
        _refuse_infinite(node, path)
        made: Any = OmegaConf.to_object(node)
        if empty := [field.name for field in dataclasses.fields(made) if _required(field) and node[field.name] == ""]:
            raise UserError(f"{path}{empty[0]}=: is required; give a value")
        return made
    except MissingMandatoryValue as error:
        key = path + str(error.key)
        raise UserError(f"{key}: is required; add {key}=... to the command or to the recipe") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{path}{error.key or error.full_key}: {first_line(error)}; write the value itself") from error
    except ValueError as error:
        raise UserError(f"{path}{error}") from error


def _refuse_infinite(node: DictConfig, path: str) -> None:
    """On the finished tree, because a value may refer to keys that come later."""
    for name in node:
        value = None if OmegaConf.is_missing(node, name) else node[name]
        numbers = value if isinstance(value, ListConfig) else [value]
        if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise UserError(f"{path}{name!s}={value}: must be a finite number; give another value")


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    if _required(field):
        return "(required)"
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(str(choice) for choice in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
