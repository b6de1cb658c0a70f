"""`python -m tests.benchmarks [--quick] [names ...]`: measure, print, and keep in build/bench.json.

A benchmark is a module `bench_NAME.py` beside this file. Its docstring says what is compared with what; its
`run(quick: bool) -> dict` gives figures by name: numbers, text, or one more level of dictionary (a row of the table).
Results of benchmarks that were not run this time stay in the file, each with the machine and versions it was taken on.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.core.cli import versions

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "build" / "bench.json"
PREFIX = "bench_"
# Too long for all at once, or of data that few have.
BY_NAME_ONLY = ("duplicates", "pretraining_pays", "suggest")
SPEED_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8")

console = Console(width=None if sys.stdout.isatty() else 140)


def benchmark_names() -> list[str]:
    """The benchmarks that stand beside this file."""
    return sorted(path.stem.removeprefix(PREFIX) for path in HERE.glob(f"{PREFIX}*.py"))


def machine() -> dict[str, Any]:
    """What decides the speed of this machine: processor, flags for fast arithmetic, cores, memory."""
    model, flags = _processor()
    return {
        "processor": model,
        "flags": [flag for flag in SPEED_FLAGS if flag in flags],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
    }


def _processor() -> tuple[str, set[str]]:
    described = Path("/proc/cpuinfo")
    if not described.exists():
        return platform.processor(), set()
    pairs = (line.partition(":") for line in described.read_text().split("\n\n")[0].splitlines())
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    model = fields.get("model name", platform.processor())
    return model, set(fields.get("flags", fields.get("Features", "")).split())


def run_benchmark(name: str, quick: bool) -> dict[str, Any]:
    """Import, run and time one benchmark; its figures with the circumstances they were taken in."""
    module = importlib.import_module(f"tests.benchmarks.{PREFIX}{name}")
    started = time.perf_counter()
    figures = module.run(quick)
    return {
        "about": (module.__doc__ or "").strip().splitlines()[0],
        "figures": figures,
        "quick": quick,
        "seconds": round(time.perf_counter() - started, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


def merge(path: Path, name: str, result: Mapping[str, Any]) -> None:
    """Put one result into the file and leave the others as they are."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results[name] = result
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=2, sort_keys=True, default=str) + "\n")
    unfinished.replace(path)


def print_result(name: str, result: Mapping[str, Any]) -> None:
    """The figures of one benchmark as a table: nested ones as rows with columns, plain ones below."""
    console.print(f"\n[bold]{name}[/] {result['about']} ({result['seconds']} s)", highlight=False)
    figures = result["figures"]
    rows = {key: value for key, value in figures.items() if isinstance(value, Mapping)}
    if rows:
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        table = Table("", *columns)
        for key, row in rows.items():
            table.add_row(key, *(_show(row.get(column, "")) for column in columns))
        console.print(table)
    for key, value in figures.items():
        if key not in rows:
            console.print(f"  {key}: {_show(value)}", highlight=False, markup=False)


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the named benchmarks, or all of them."""
    known = benchmark_names()
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Ratios side by side.")
    parser.add_argument(
        "names",
        nargs="*",
        help=f"which ones of {', '.join(known)}; when none is named all but {', '.join(BY_NAME_ONLY)}",
    )
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, for trying them out")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(known))
    if unknown:
        parser.error(f"names={','.join(unknown)}: no such benchmark; known: {', '.join(known)}")
    for name in arguments.names or [name for name in known if name not in BY_NAME_ONLY]:
        console.print(f"[dim]running {name} ...[/]", highlight=False)
        result = run_benchmark(name, arguments.quick)
        merge(RESULTS, name, result)
        print_result(name, result)
    console.print(f"\nkept in {RESULTS}", highlight=False)


if __name__ == "__main__":
    main()
