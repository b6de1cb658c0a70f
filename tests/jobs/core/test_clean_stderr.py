"""Secrets and terminal sequences in errors, log records and warnings, looked for on stderr."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.core.clean_stderr import CleanRecord

PASSWORD = "hunter2-in-a-uri"
URI = f"http://someone:{PASSWORD}@127.0.0.1:9"
ENDS = {
    "raised": f"raise OSError('no answer of {URI}/\\x1b[2J')",
    "in a thread": f"""
def work(): raise OSError('no answer of {URI}/\\x1b[2J')
thread = threading.Thread(target=work); thread.start(); thread.join(); sys.exit(1)""",
    "when collected": f"""
class Odd:
    def __del__(self): raise OSError('no answer of {URI}/\\x1b[2J')
odd = Odd(); del odd; sys.exit(1)""",
    "logged": f"""
try: raise OSError('no answer of {URI}/\\x1b[2J')
except OSError: logging.getLogger('library').exception('failed at %s', '{URI}')
sys.exit(1)""",
    "warned": f"warnings.warn('no answer of {URI}/\\x1b[2J'); sys.exit(1)",
}


@pytest.mark.parametrize("end", ENDS)
def test_nothing_is_written_as_it_is(end: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    imports = "import logging, sys, threading, warnings\nfrom jobs.core.clean_stderr import clean_stderr\n"
    script.write_text(f"{imports}clean_stderr()\n{ENDS[end]}\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "no answer of http://127.0.0.1:9" in done.stderr
    assert PASSWORD not in done.stderr
    assert "\x1b" not in done.stderr


def test_a_log_record_is_one_line() -> None:
    record = CleanRecord("jobs", logging.WARNING, "file.py", 1, "left out %s", ("a\nERROR forged\x1b[2J",), None)
    assert record.getMessage() == "left out a ERROR forged\N{REPLACEMENT CHARACTER}[2J"
