"""Providers that are asked over plain HTTP: a bearer's key, JSON, and faults in our words."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, TypeVar

from ..errors import ProviderError, redact
from .faults import TakenError, http_fault, never_passes, transient, unsent

_TIMEOUT = 60.0  # seconds without a byte
_T = TypeVar("_T")


class Rest:
    """One server. The key is kept in memory alone, and is in no message."""

    def __init__(self, server: str, address: str, key: str | None, credentials: str) -> None:
        if not key:
            raise ProviderError(f"There is no key for {server}.", hint=credentials)
        self.server, self.address, self.credentials = server, address.rstrip("/"), credentials
        self._key = key

    def ask(self, what: str, method: str, path: str, **request: Any) -> "Answer":
        """The answer's JSON object (empty where there is none). `request` is httpx's: json, params, data, files.

        Raises:
            TransientError: A rate limit, a server's own error, a timeout or a lost connection.
            MissingError: 404.
            TakenError: 409.
            ProviderError: Any other refusal, or an answer that is no JSON object.
        """
        import httpx

        headers = {"Authorization": f"Bearer {self._key}"}
        try:
            answer = httpx.request(method, self.address + path, headers=headers, timeout=_TIMEOUT, **request)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as error:
            fault: ProviderError = (
                unsent(self.server, what, error)
                if never_passes(error)
                else transient(f"{self.server} did not answer: {what}: {error or type(error).__name__}.")
            )
        else:
            if answer.is_success:
                return self._json(what, answer)
            reason = answer.text[:500]
            if answer.status_code == 409:
                fault = TakenError(redact(f"{self.server}: {what}: HTTP 409: {reason}", (self._key,)))
            else:
                fault = http_fault(
                    f"{self.server}: {what}",
                    answer.status_code,
                    reason,
                    answer.headers,
                    credentials=self.credentials,
                    secrets=(self._key,),
                )
        raise fault

    def _json(self, what: str, answer: Any) -> "Answer":
        try:
            found = answer.json() if answer.content.strip() else {}
        except ValueError:
            found = None
        if isinstance(found, dict):
            return Answer(found, f"{self.server}: {what}")
        raise ProviderError(f"{self.server}: {what}: it answered something that is no JSON object.")


class Answer(dict[str, Any]):
    """A JSON object that a server answered. What has to be in it and is not, or is of another kind, is a ProviderError."""

    def __init__(self, found: Mapping[str, Any], asked: str) -> None:
        super().__init__(found)
        self.asked = asked

    def __missing__(self, name: str) -> Any:
        raise ProviderError(f"{self.asked}: its answer has no {name!r}.", hint="Is the address that of its API?")

    def one(self, name: str) -> "Answer":
        """The object under a name; an empty one where there is none."""
        return Answer(self._typed(name, dict, {}), self.asked)

    def all(self, name: str) -> list["Answer"]:
        """The objects in a list under a name; none where there is no list."""
        return [Answer(one, self.asked) for one in self._typed(name, list, []) if isinstance(one, dict)]

    def _typed(self, name: str, kind: type[_T], none: _T) -> _T:
        found = self.get(name)
        if found is None or isinstance(found, kind):
            return found or none
        raise ProviderError(f"{self.asked}: it answered something else than {name!r} of its API.")


def seconds(moment: Any) -> float:
    """Seconds since 1970 of a time as these providers write them, "2026-11-21T12:00:00Z"; 0 where there is none."""
    text = re.sub(r"\.\d+", lambda part: f"{part[0]:0<7}"[:7], str(moment))  # Python 3.10 reads microseconds alone
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0.0


def given(settings: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The settings that are there, by the provider's own names."""
    return {theirs: settings[ours] for ours, theirs in names.items() if settings.get(ours) is not None}
