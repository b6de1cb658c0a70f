"""What all commands share: arguments, help, exit codes, `report.json`.

A command is ``main()``: load the configuration, build, run, report. Exit codes: 0 done, 2 a mistake in the arguments,
3 stopped on request with the finished work saved, 1 anything else.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Generic, TypeVar

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from jobs.core.clean_stderr import clean_stderr
from jobs.core.config import (
    KeyHelp,
    config_dict,
    config_yaml,
    describe_keys,
    flatten,
    load_config,
    recipe_names,
    slices,
)
from jobs.core.errors import StopRequestedError, UserError, WorkStoppedError
from jobs.core.events import bind, emit, emit_error, emit_log, is_json, print_events, split_format
from jobs.core.holdings import is_registered
from jobs.core.pushgateway import leave_facts
from jobs.core.redaction import public
from jobs.core.signals import stopping_on_sigterm
from jobs.core.text import plain, shown
from pipeline.manifest.errors import InputError
from pipeline.storage.files import (
    StorageError,
    absolute,
    exists,
    is_local_relative,
    join,
    list_files,
    local_path,
    write_bytes,
)

ConfigT = TypeVar("ConfigT")
Report = Mapping[str, Any]

VERSIONED = ("torch", "ray", "deepspeed", "decord", "av", "pyarrow", "mlflow", "boto3", "numpy")
FIGURES = "figures.json"
PLAN = "plan."  # prefix of the keys of `--dry-run` alone
HELP_WIDTH = 120
DOCUMENTS = {"--help", "--print-config"}  # print the same whatever the format of the log
LOOKS_ONLY = {*DOCUMENTS, "--dry-run"}
# The keys that people set first; `--help` shows them first.
FIRST_KEYS = ("source", "data", "init", "model", "output", "workers", "seed", "epochs", "steps", "global_batch",
              "micro_batch")  # fmt: skip
console = Console(stderr=True)


def echo(message: str, *, warning: bool = False) -> None:
    """Print a line to stderr; unwrapped, because logs and `jobs.sweep` read it line by line."""
    if is_json():
        emit("log", message, level="warning" if warning else "info")
        return
    print_line(("warning", "yellow") if warning else "", ": " if warning else "", shown(message))


def print_line(*parts: str | tuple[str, str]) -> None:
    """Print a line to stderr of texts and (text, style); none of them is markup."""
    if is_json():
        emit_log("".join(part if isinstance(part, str) else part[0] for part in parts))
        return
    console.print(Text.assemble(*parts), highlight=False, soft_wrap=True)


def write(text: str, end: str = "\n") -> None:
    """Print to stdout as it is. Rich exits silently where the reader has closed the pipe (`| head`)."""
    Console().out(text, end=end, highlight=False)


def heading(title: str) -> None:
    """Begin a part of a command's work, on stderr."""
    if is_json():
        emit("stage", title)
    else:
        console.rule(plain(title))


def bars_are_drawn() -> bool:
    """Whether someone looks at stderr who wants to see bars move."""
    return console.is_terminal and not is_json()


@dataclasses.dataclass(frozen=True)
class Command(Generic[ConfigT]):
    """A command as `python -m jobs.NAME` calls it: parse ``sys.argv``, run, print the report, exit with a code."""

    name: str
    config_class: type[ConfigT]
    run: Callable[[ConfigT], Report]
    _: dataclasses.KW_ONLY
    description: str
    dry_run: Callable[..., Report] | None = None
    """Computes the report of ``--dry-run`` from the configuration; default: `existing_paths`."""
    dry_run_plan: type | None = None
    """Configuration of the keys ``plan.*``, which exist for ``--dry-run`` alone: the second argument of ``dry_run``."""
    draw: Callable[[ConfigT, Report], Report] | None = None
    """Draws pictures, from the configuration and the report, once that is written and printed: they must not cost it.
    Returns where they lie."""
    keep_report: bool = True
    """Also write the report to ``report.json`` under the command's output."""
    load: Callable[[Sequence[str]], ConfigT] | None = None
    """Turns the arguments into a configuration; default: a recipe and ``key=value``."""
    usage: str = "[RECIPE] [key=value ...]"
    """The arguments as ``--help`` shows them."""

    def __call__(self) -> None:
        """Run, and exit with one of the exit codes above."""
        clean_stderr()
        bind(program=self.name)
        code, started = 1, time.monotonic()
        try:
            with stopping_on_sigterm("finished work is kept; run the same command to resume"):
                _run(self, sys.argv[1:])
            code = 0
        except (UserError, StorageError) as error:
            _log_end("refused", self.name, "bold red", error)
            code = 2
        except StopRequestedError as stopped:
            _log_end("stopped", f"{self.name} stopped on request", "yellow", stopped)
            code = 3
        except WorkStoppedError as stopped:
            _log_end("failed", f"{self.name} stopped", "bold red", stopped)
        except SystemExit as ended:  # of a command that ends as another one did
            code = _exit_code(ended)
        except KeyboardInterrupt:
            print_line((f"{self.name} interrupted", "yellow"))
        except Exception as error:
            if not is_json():
                raise
            emit_error(error)
        finally:
            if not LOOKS_ONLY & set(sys.argv) and (trouble := leave_facts(self.name, code)):
                echo(trouble, warning=True)
        if is_json() and not DOCUMENTS & set(sys.argv):
            emit("ended", fields={"exit_code": code, "seconds": time.monotonic() - started})
        sys.exit(code)


def _exit_code(ended: SystemExit) -> int:
    """The code that Python itself would end with: of anything but a number it prints the text, and ends with 1."""
    if ended.code is None or isinstance(ended.code, int):
        return ended.code or 0
    print_line(shown(ended.code))
    return 1


def _log_end(event: str, prefix: str, style: str, error: Exception) -> None:
    if is_json():
        emit(event, str(error), level="info" if event == "stopped" else "error")
    else:
        print_line((prefix, style), ": ", shown(error))


def _run(command: Command[ConfigT], arguments: Sequence[str]) -> None:
    flags = {argument for argument in arguments if argument.startswith("--")}
    if unknown := flags - LOOKS_ONLY:
        raise UserError(f"{min(unknown)}: unknown flag; known: --help, --print-config, --dry-run")
    words = split_format([word for word in arguments if word not in flags])
    if is_json() and not DOCUMENTS & flags:
        print_events()
        emit("started", fields={"arguments": list(arguments)})
    if "--help" in flags:
        write("\n".join(_help(command)))
        return
    plan, words = _split_plan(command, words, dry_run="--dry-run" in flags)
    config = command.load(words) if command.load else load_config(command.config_class, command.name, words)
    refuse_vanishing_output(getattr(config, "output", None))
    if "--print-config" in flags:
        write(config_yaml(config), end="")
    elif "--dry-run" in flags:
        if is_json():
            emit("config", fields=config_dict(config), stream=sys.stdout)
        else:
            write(config_yaml(config))
        dry_run = command.dry_run or existing_paths
        report = _with_keys(lambda checked: dry_run(checked, *plan), config)
        print_report(f"{command.name}, dry run: nothing is written", report)
    else:
        run_and_report(command, config)


def run_and_report(command: Command[ConfigT], config: ConfigT) -> Report:
    """Run a command, write and print its report, then draw its pictures; the report with where they lie."""
    report = _with_keys(command.run, config)
    if command.keep_report:
        finish(command.name, config, report)
    else:
        print_report(command.name, report)
    if command.draw is None:
        return report
    draw = command.draw
    drawn = _with_keys(lambda checked: draw(checked, report), config)
    print_paths(drawn)
    return {**report, **drawn}


def _with_keys(work: Callable[[ConfigT], Report], config: ConfigT) -> Report:
    """Do the work; an error of storage, or in a file that was given, gets the key that names the path.

    Raises:
        UserError: storage failed at a path that the configuration names, or what was given cannot be used.
    """
    try:
        return work(config)
    except StorageError as error:
        given = _key_of(config, error.uri)
        if given is None:
            raise
        key, path = given
        where = "" if error.uri in (path, absolute(path)) else f"{error.uri}: "
        raise UserError(f"{key}={path}: {where}{error.happened}; {error.remedy}") from error
    except InputError as error:
        uri, _, happened = str(error).partition(": ")
        if (given := _key_of(config, uri)) is None:
            raise UserError(str(error)) from error
        key, path = given
        where = "" if uri in (path, absolute(path)) else f"{uri}: "
        raise UserError(f"{key}={path}: {where}{happened}") from error


def _key_of(config: Any, uri: str) -> tuple[str, str] | None:
    """The dotted key, and its value, of the longest path that is the URI or a folder above it."""
    paths = {key: value for key, value in flatten(config_dict(config)).items() if value and isinstance(value, str)}
    above = [
        (len(value), key)
        for key, value in paths.items()
        if uri in (value, absolute(value)) or uri.startswith(join(absolute(value), ""))
    ]
    return (key := max(above)[1], paths[key]) if above else None


def _split_plan(command: Command[ConfigT], words: Sequence[str], *, dry_run: bool) -> tuple[list[Any], list[str]]:
    """The keys of `--dry-run` alone, as its further argument, and the other words.

    Raises:
        UserError: such a key without `--dry-run`, or with a value outside its rule.
    """
    if command.dry_run_plan is None:
        return [], list(words)
    planned = [word for word in words if word.startswith(PLAN)]
    if planned and not dry_run:
        raise UserError(f"{planned[0]}: is a key of --dry-run alone; add --dry-run, or remove it")
    try:
        plan: Any = load_config(command.dry_run_plan, command.name, [word.removeprefix(PLAN) for word in planned])
    except UserError as error:
        raise UserError(f"{PLAN}{error}") from error
    return [plan], [word for word in words if word not in planned]


def existing_paths(config: Any) -> Report:
    """Which of the paths that a command would read and write exist: ``--dry-run`` of most commands.

    Raises:
        StorageError: a path cannot be reached.
    """
    paths = {key: getattr(config, key, None) for key in ("source", "data", "init", "output")}
    return {key: f"{path}: {_state(path)}" for key, path in paths.items() if path}


def _state(path: str) -> str:
    if is_registered(path):
        return "a model in the MLflow registry, which a dry run does not contact"
    if exists(join(path, "run.json")):
        return "a run; the same configuration resumes it, another is refused"
    local = local_path(path)
    if exists(path) and not (local and local.is_dir()):
        return "a file"
    try:
        files = len(list_files(path, recursive=False))
    except StorageError as error:
        if not error.missing:
            raise
        return "does not exist"
    return f"a folder, {files} files directly in it" if files else "empty, or folders only"


def finish(name: str, config: Any, report: Report) -> None:
    """Write the figures as ``report.json`` under the command's output, and print them."""
    if output := getattr(config, "output", None):
        content = public({"command": name, **report, "versions": versions()})
        write_bytes(join(output, "report.json"), json.dumps(content, indent=2, default=str).encode())
    print_report(name, report)


def write_figures(output: str, figures: Report) -> None:
    """Write a run's figures before its pictures are drawn, under its output."""
    write_bytes(join(output, FIGURES), json.dumps(public(dict(figures)), indent=2, default=str).encode())


def refuse_vanishing_output(output: str | None) -> None:
    """A submitted job runs in a directory that is deleted with it.

    Raises:
        UserError: a relative ``output`` inside a job started by `ray job submit`.
    """
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if output and submitted and is_local_relative(output):
        raise UserError(
            f"output={output}: must not be relative inside a submitted job, whose directory is deleted with it; "
            "give an absolute path on shared storage, or an s3:// URI"
        )


def _help(command: Command[ConfigT]) -> Iterator[str]:
    """Usage, recipes, exit codes, and every key with type, default and meaning; the common ones first."""
    usage = command.usage if recipe_names(command.name) else command.usage.removeprefix("[RECIPE] ")
    yield f"usage: python -m jobs.{command.name} {usage} [--help | --print-config | --dry-run]\n"
    yield f"{command.description}\n"
    yield "log=json prints what happens as lines of JSON, one an event (also HIERA_LOG=json in the environment)"
    names = ", ".join(recipe_names(command.name))
    recipes = f"{names}; or the path or URI of a YAML file" if names else "the path or URI of a YAML file of your own"
    yield textwrap.fill(f"recipes: {recipes}", HELP_WIDTH, subsequent_indent="  ")
    yield "exit codes: 0 done, 1 failed, 2 a mistake in the arguments, 3 stopped on request with finished work saved"
    for heading, keys in _topics(command):
        yield f"\n{heading}"
        for key in keys:
            yield f"  {key.key}: {key.type_name} = {key.default}"
            yield textwrap.indent(key.text, " " * 6)


def _topics(command: Command[ConfigT]) -> Iterator[tuple[str, list[KeyHelp]]]:
    """Headings and their keys; no key twice, none left out."""
    left = {key.key: key for key in describe_keys(command.config_class)}
    topics: dict[str, Sequence[str]] = {"common keys": FIRST_KEYS, **getattr(command.config_class, "TOPICS", {})}
    topics[command.name] = [
        key for key in left if "." not in key and not any(key in known for known in topics.values())
    ]
    topics |= {heading: [key for key in left if key.startswith(f"{name}.")]
               for name, heading in slices(command.config_class)}  # fmt: skip
    for heading, names in topics.items():
        if keys := [left.pop(name) for name in names if name in left]:
            yield heading, keys
    if command.dry_run_plan:
        yield "keys of --dry-run alone", list(describe_keys(command.dry_run_plan, f"--dry-run {PLAN}"))


def print_report(title: str, report: Report) -> None:
    """The figures of a run as a two-column table; below it paths and URIs, each whole on a line: a table cuts them."""
    if is_json():
        emit("report", title, report, stream=sys.stdout)
        return
    figures = {key: f"{value:.4g}" if isinstance(value, float) else shown(value) for key, value in report.items()}
    paths = {key: value for key, value in figures.items() if value.startswith("/") or "://" in value}
    table = Table("", "", title=plain(title, "italic"), show_header=False, title_justify="left")
    for column in table.columns:
        column.overflow = "fold"
    for key, value in figures.items():
        if key not in paths:
            table.add_row(plain(key), plain(value))
    Console().print(table)
    print_paths(paths)


def print_paths(paths: Report) -> None:
    """Paths and URIs, each whole on a line."""
    if is_json() and paths:
        emit("files", fields=paths, stream=sys.stdout)
        return
    for key, path in paths.items():
        write(f"{shown(key)}:\n  {shown(path)}")


def print_tables(*tables: RenderableType) -> None:
    """Print tables, or what else rich draws, to stdout; as events with columns and rows."""
    if not is_json():
        Console().print(*tables, sep="\n")
        return
    for table in tables:
        emit("table", stream=sys.stdout, fields=_cells(table))


def _cells(table: RenderableType) -> dict[str, Any]:
    if not isinstance(table, Table):
        drawing = Console(file=io.StringIO(), width=HELP_WIDTH, force_terminal=False)
        with drawing.capture() as captured:
            drawing.print(table)
        return {"text": captured.get()}
    columns = [[str(cell) for cell in column.cells] for column in table.columns]
    rows = [list(row) for row in zip(*columns, strict=True)]
    return {"title": str(table.title or ""), "columns": [str(column.header) for column in table.columns], "rows": rows}


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
