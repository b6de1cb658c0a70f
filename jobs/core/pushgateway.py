"""The last facts of a command that ends, left at a Prometheus Pushgateway: a scrape may come too late for them.

Nothing is sent unless ``HIERA_PUSHGATEWAY`` (http://HOST:9091) is set. ``report.json`` is no substitute: a command that
failed writes none, and nobody scrapes files in object storage.
"""

from __future__ import annotations

import os
import time
from http.client import HTTPException

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

VARIABLE = "HIERA_PUSHGATEWAY"
JOB = "hiera"
SECONDS = 5.0

END = "hiera_last_end_timestamp_seconds"
SUCCESS = "hiera_last_success_timestamp_seconds"
EXIT_CODE = "hiera_last_exit_code"
PUSHED = {
    END: "When the program last ended, however.",
    SUCCESS: "When the program last ended with exit code 0.",
    EXIT_CODE: "How the program last ended: 0 done, 1 failed, 2 a mistake in the arguments, 3 stopped on request.",
}


def leave_facts(program: str, code: int) -> str:
    """Push how a program ended; what went wrong if that fails, which must not change how the program ends."""
    gateway = os.environ.get(VARIABLE)
    if not gateway:
        return ""
    registry, now = CollectorRegistry(), time.time()
    values = {END: now, EXIT_CODE: float(code), **({SUCCESS: now} if code == 0 else {})}
    for name, value in values.items():
        Gauge(name, PUSHED[name], registry=registry).set(value)
    try:
        pushadd_to_gateway(gateway, JOB, registry, grouping_key={"program": program}, timeout=SECONDS)
    except (OSError, ValueError, HTTPException) as error:
        return f"{VARIABLE}={gateway}: did not take the last facts of {program}: {error}"
    return ""
