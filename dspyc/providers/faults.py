"""What an HTTP answer that is no success means: a fault that may pass, or one that will not; by its status and its words."""

import time
from collections.abc import Iterable, Mapping
from datetime import timezone
from email.utils import parsedate_to_datetime
from typing import Any

from ..errors import ProviderError, TransientError, redact

_PASSES = (408, 409, 425, 429)
_NEVER_SENT = ("UnsupportedProtocol", "LocalProtocolError", "InvalidURL")  # of httpx, and of its forks


class RefusalError(ProviderError):
    """A status of 4xx that will not pass: what was asked for was not done, which no other fault says."""


class MissingError(RefusalError):
    """Something that the provider does not have: a job, a model, an endpoint, a bucket."""


class TakenError(RefusalError):
    """A name that is in use, or a state that does not allow what was asked."""


def http_fault(
    what: str,
    status: int,
    reason: str,
    headers: Mapping[str, str],
    *,
    credentials: str = "",
    hint: str = "",
    secrets: Iterable[str] = (),
) -> ProviderError:
    """The error to raise. `what` was asked, as in "OpenAI refused to start the job"; `credentials` says how to give them."""
    message = redact(f"{what}: HTTP {status}: {reason}", secrets)
    if status in _PASSES or status >= 500:
        return transient(message, retry_after(headers))
    if status == 404:
        return MissingError(message, hint=hint)
    if status in (401, 403):
        return RefusalError(message, hint=hint or f"The credentials were not accepted. {credentials}".strip())
    return (RefusalError if 400 <= status < 500 else ProviderError)(message, hint=hint)


def never_passes(error: BaseException) -> bool:
    """Whether an HTTP client's error says that a request cannot be sent at all, by whichever client's class of that name."""
    return type(error).__name__ in _NEVER_SENT or isinstance(error, UnicodeEncodeError)


def unsent(server: str, what: str, error: BaseException) -> ProviderError:
    """The error to raise then. It does not have the client's own words, which may hold the key."""
    return ProviderError(
        f"{server} was not asked: {what}: {type(error).__name__}.",
        hint="The address has to be one of http or https, and the key one line of plain characters.",
    )


def transient(message: str, wait: float | None = None) -> TransientError:
    """A fault that may pass, with the seconds that the provider asked to wait."""
    error = TransientError(message, hint="Try again later: what was started goes on, and is found again.")
    error.retry_after = wait
    return error


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds, from `retry-after-ms` or `Retry-After` (a number or a date); None where there is neither."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        if (seconds := seconds_of(headers.get(name))) is not None:
            return seconds / unit
    return None


def seconds_of(given: Any) -> float | None:
    """A wait that a server asks for, in seconds from now, by a number or a date, as HTTP allows; a past date asks for 0.

    None where it cannot be read.
    """
    try:
        number = float(given)
    except (TypeError, ValueError):
        pass
    else:
        return number if number >= 0 else None
    try:
        at = parsedate_to_datetime(given)
    except (TypeError, ValueError, AttributeError):
        return None
    return max(0.0, at.replace(tzinfo=at.tzinfo or timezone.utc).timestamp() - time.time())
