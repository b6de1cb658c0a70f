"""What all commands share: arguments, help, exit codes, `report.json`.

A command is ``main()``: load the configuration, build, run, report. Exit codes: 0 done, 2 the user's mistake,
1 anything else, 3 stopped on request with the work saved.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Any, Generic, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.core.config import config_yaml, describe_keys, load_config, recipe_names
from jobs.core.errors import StopRequestedError, UserError, WorkStoppedError
from jobs.core.init_source import is_registered
from jobs.core.redaction import clean_tracebacks, public, without_secrets
from jobs.core.signals import stopping_on_sigterm
from pipeline.storage.files import StorageError, exists, is_local_relative, join, list_files, write_bytes

ConfigT = TypeVar("ConfigT")
Report = Mapping[str, Any]

VERSIONED = ("torch", "ray", "deepspeed", "decord", "av", "pyarrow", "mlflow", "boto3", "numpy")
console = Console(stderr=True)


def echo(message: str, *, warning: bool = False) -> None:
    """A line for the person at the terminal; unwrapped, because logs and a sweep take it line by line."""
    console.print(f"{'[yellow]warning[/]: ' if warning else ''}{escape(message)}", highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Command(Generic[ConfigT]):
    """A command as `run_command` starts it."""

    name: str
    config_class: type[ConfigT]
    run: Callable[[ConfigT], Report]
    description: str
    dry_run: Callable[[ConfigT], Report] | None
    keep_report: bool
    load: Callable[[Sequence[str]], ConfigT]
    usage: str


def run_command(
    name: str,
    config_class: type[ConfigT],
    run: Callable[[ConfigT], Report],
    *,
    description: str,
    dry_run: Callable[[ConfigT], Report] | None = None,
    keep_report: bool = True,
    load: Callable[[Sequence[str]], ConfigT] | None = None,
    usage: str = "[RECIPE] [key=value ...]",
) -> None:
    """Parse ``sys.argv``, run, print the report, and exit with the contract's code.

    Args:
        dry_run: what ``--dry-run`` prints instead of running.
        keep_report: also write the report to ``report.json`` under the command's output.
        load: reads the arguments, where they are not a recipe and keys.
        usage: what the arguments are.
    """
    load = load or partial(load_config, config_class, name)
    command = Command(name, config_class, run, description, dry_run, keep_report, load, usage)
    clean_tracebacks()
    try:
        with stopping_on_sigterm("nothing that was finished is lost; the same command goes on"):
            _run(command, sys.argv[1:])
        code = 0
    except (UserError, StorageError) as error:
        console.print(f"[bold red]{name}[/]: {_plain(error)}", highlight=False, soft_wrap=True)
        code = 2
    except StopRequestedError as stopped:
        console.print(f"[yellow]{name} stopped on request[/]: {_plain(stopped)}", highlight=False, soft_wrap=True)
        code = 3
    except WorkStoppedError as stopped:
        console.print(f"[bold red]{name} stopped[/]: {_plain(stopped)}", highlight=False, soft_wrap=True)
        code = 1
    except KeyboardInterrupt:
        console.print(f"[yellow]{name} interrupted[/]")
        code = 1
    sys.exit(code)


def _run(command: Command[ConfigT], arguments: Sequence[str]) -> None:
    flags = {argument for argument in arguments if argument.startswith("--")}
    unknown = flags - {"--help", "--print-config", "--dry-run"}
    if unknown:
        raise UserError(f"{min(unknown)}: unknown flag; known: --help, --print-config, --dry-run")
    if "--help" in flags:
        print_help(command.name, command.config_class, command.description, command.usage)
        return
    config = command.load([word for word in arguments if word not in flags])
    refuse_vanishing_output(getattr(config, "output", None))
    if "--print-config" in flags:
        print(config_yaml(config), end="")
    elif "--dry-run" in flags:
        print(config_yaml(config))
        print_report(f"{command.name}, dry run: nothing is written", (command.dry_run or what_is_there)(config))
    elif command.keep_report:
        finish(command.name, config, command.run(config))
    else:
        print_report(command.name, command.run(config))


def what_is_there(config: Any) -> Report:
    """Which of the places that a command would read and write exist: ``--dry-run``, unless it has one of its own.

    Raises:
        StorageError: a place cannot be reached.
    """
    places = {key: getattr(config, key, None) for key in ("source", "data", "init", "output")}
    return {key: f"{place}: {_state(place)}" for key, place in places.items() if place}


def _state(place: str) -> str:
    if is_registered(place):
        return "a model of the MLflow registry, which is asked by the run only"
    if exists(join(place, "run.json")):
        return "holds a run; the same configuration goes on with it, another is refused"
    if exists(place):
        return "a file"
    try:
        files = len(list_files(place, recursive=False))
    except StorageError as error:
        if not error.missing:
            raise
        return "nothing there"
    return f"a folder, {files} files directly in it" if files else "empty, or folders only"


def finish(name: str, config: Any, report: Report) -> None:
    """Print the figures and keep them as ``report.json`` under the command's output."""
    print_report(name, report)
    output = getattr(config, "output", None)
    if output:
        content = public({"command": name, **report, "versions": versions()})
        write_bytes(join(output, "report.json"), json.dumps(content, indent=2, default=str).encode())


def refuse_vanishing_output(output: str | None) -> None:
    """A submitted job runs in a directory that is deleted with it.

    Raises:
        UserError: a relative ``output`` inside a job started by `ray job submit`.
    """
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if output and submitted and is_local_relative(output):
        raise UserError(
            f"output={output}: inside a submitted job a relative place vanishes with the job's directory; "
            "give an absolute path on shared storage or an s3:// URI"
        )


def print_help(name: str, config_class: type, description: str, usage: str) -> None:
    """Usage, recipes, and every key with type, default and meaning."""
    print(f"usage: python -m jobs.{name} {usage} [--help | --print-config | --dry-run]\n")
    print(f"{description}\n")
    recipes = recipe_names(name)
    print(f"recipes: {', '.join(recipes) if recipes else 'none needed'}; a path or URI of a YAML file works too")
    print("exit codes: 0 done, 1 failed, 2 a mistake in the arguments, 3 stopped on request with work saved\n")
    for key in describe_keys(config_class):
        print(f"  {key.key}: {key.type_name} = {key.default}")
        for line in key.text.splitlines():
            print(f"      {line}")


def print_report(title: str, report: Report) -> None:
    """The figures of a run as a two-column table; below it paths and URIs, each whole on a line: a table cuts them."""
    shown = {
        key: f"{value:.4g}" if isinstance(value, float) else escape(without_secrets(str(value)))
        for key, value in report.items()
    }
    paths = {key: value for key, value in shown.items() if value.startswith("/") or "://" in value}
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for key, value in shown.items():
        if key not in paths:
            table.add_row(key, value)
    output = Console()
    output.print(table)
    for key, path in paths.items():
        output.print(f"{key}:\n  {path}", highlight=False, soft_wrap=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose behaviour decides the result."""
    found = {"python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def replace(config: ConfigT, **changes: Any) -> ConfigT:
    """``dataclasses.replace`` typed for configurations."""
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _plain(error: BaseException) -> str:
    return escape(without_secrets(str(error)))
