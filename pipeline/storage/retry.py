"""The one retry policy of object storage: exponential backoff with jitter, bounded by a time budget.

Every request of `pipeline.storage` runs under it, and nothing else retries: neither botocore nor Arrow, nor any caller.
Local files are outside of it: their errors are definite, and a network mount retries in the kernel.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import botocore.exceptions
import tenacity

from pipeline.storage.errors import S3_ERRORS, code_of

logger = logging.getLogger(__name__)

BUDGET_SECONDS = 60.0
"""How long storage may go without an answer. A restarted gateway, a failover or throttling is over within a minute;
what lasts longer needs a person, who should not wait longer than that for the error of a mistyped endpoint."""
WAIT = tenacity.wait_exponential(multiplier=0.25, max=8) + tenacity.wait_random(0, 1)
"""Pauses of 0.25 s, doubled up to 8 s: at most 13 requests in a budget. The random part spreads out workers that
failed at the same moment."""
WARN_AFTER_TRIES = 3

_TRANSIENT_CODES = ("SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "IncompleteBody")
_TRANSIENT_ERRORS = (
    botocore.exceptions.HTTPClientError,
    botocore.exceptions.ConnectionError,
    botocore.exceptions.IncompleteReadError,
    botocore.exceptions.CredentialRetrievalError,
    ConnectionError,
    TimeoutError,
)
# Arrow names the server's answer in the text of an OSError, and nowhere else.
_DEFINITE_FOR_ARROW = (
    "ACCESS_DENIED",
    "NO_SUCH_",
    "RESOURCE_NOT_FOUND",
    "INVALID_",
    "SIGNATURE",
    *(f"HTTP status {code}" for code in (400, 401, 403, 404, 405, 412)),
)  # not 408 and 429

# Delta Lake's client has its own share of this policy (`pipeline.storage.s3.delta_options`), which does not cover an
# answer that breaks off; it, too, names the reason in the text alone.
_BROKEN_OFF_FOR_DELTA = "response body error"
_FROM_DELTA = "Generic S3 error"

Result = TypeVar("Result")
Item = TypeVar("Item")


class RetryBudget:
    """How long the requests that share it may go without an answer.

    Once it is spent, each request gets a single try, until one is answered: a caller that turns errors into rows does
    not wait a whole budget for every row.
    """

    def __init__(self, seconds: float | None = None) -> None:
        """``seconds``: default `BUDGET_SECONDS`; more for a writer that nothing waits for."""
        self.seconds = BUDGET_SECONDS if seconds is None else seconds
        self._failing_since: float | None = None  # start of the first failed request since the last answer

    @contextlib.contextmanager
    def shared(self) -> Iterator[RetryBudget]:
        """Let all requests inside share this budget. Where one is running already, that one holds instead."""
        outer = _running.get()
        token = _running.set(outer or self)
        try:
            yield outer or self
        finally:
            _running.reset(token)

    def is_spent(self, after_seconds: float = 0.0) -> bool:
        now = time.monotonic() + after_seconds
        return self._failing_since is not None and now - self._failing_since >= self.seconds

    def failed(self, state: tenacity.RetryCallState) -> bool:
        """Whether a request failed for a transient reason. A definite answer, 404 included, refills the budget."""
        error = state.outcome.exception() if state.outcome is not None else None
        if error is None or not is_transient(error):
            self._failing_since = None
            return False
        if self._failing_since is None:
            self._failing_since = state.start_time
        return True

    def stop(self) -> Callable[[tenacity.RetryCallState], bool]:
        """When a call that begins now gives up."""
        if self.is_spent():
            return tenacity.stop_after_attempt(1)
        # The call's own time counts besides: answers to other threads refill the shared budget.
        late = tenacity.stop_before_delay(self.seconds)

        def stop(state: tenacity.RetryCallState) -> bool:
            # One transfer may outlast the budget; where requests inside of this one have spent it, no more follow.
            is_first_failure = state.attempt_number == 1 and self._failing_since == state.start_time
            return not is_first_failure and (late(state) or self.is_spent(state.upcoming_sleep))

        return stop


_running: contextvars.ContextVar[RetryBudget | None] = contextvars.ContextVar("retry_budget", default=None)


def retried(request: Callable[[], Result]) -> Result:
    """The result of ``request``, which is repeated while it fails for a transient reason and the budget lasts.

    No request begins after the budget, so a call takes at most the budget and one time-out. A transfer that itself
    takes longer than the budget gets a second try.

    Raises:
        Exception: the last error of ``request``; a definite one (404, 403, 412, a bad name) at once.
    """
    with RetryBudget().shared() as budget:
        return tenacity.Retrying(retry=budget.failed, wait=WAIT, stop=budget.stop(), before_sleep=_warn, reraise=True)(
            request
        )


def in_threads(threads: int, call: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """``call`` of every item, in order, side by side under one budget; the first error cancels what has not begun."""
    failures: list[Exception] = []

    def run(context: contextvars.Context, item: Item) -> Result:
        if failures:  # on a busy machine the starter notices late
            raise failures[0]
        try:
            return context.run(call, item)
        except Exception as error:
            failures.append(error)
            raise

    with RetryBudget().shared(), ThreadPoolExecutor(threads) as pool:
        # A thread begins without its starter's context variables, and a context runs in one thread at a time.
        contexts = [contextvars.copy_context() for _ in items]
        return list(pool.map(run, contexts, items))


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: no answer, a broken transfer, or a server that is overloaded."""
    if isinstance(error, botocore.exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return code_of(error) in _TRANSIENT_CODES or status == 429 or status >= 500
    if isinstance(error, _TRANSIENT_ERRORS) or _BROKEN_OFF_FOR_DELTA in str(error):
        return True
    if _FROM_DELTA in str(error):
        return False
    # Errors of this machine's own files, a full disk for one, carry a number; those of Arrow's S3 client do not.
    from_arrow = isinstance(error, OSError) and not isinstance(error, S3_ERRORS) and error.errno is None
    return from_arrow and not any(word in str(error) for word in _DEFINITE_FOR_ARROW)


def _warn(state: tenacity.RetryCallState) -> None:
    """One line per call that keeps failing: a first hiccup is no news."""
    error = state.outcome.exception() if state.outcome is not None else None
    if state.attempt_number == WARN_AFTER_TRIES and isinstance(error, Exception):
        logger.warning("object storage answered %s; retrying, check AWS_ENDPOINT_URL and the network", code_of(error))
