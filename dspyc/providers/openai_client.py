"""The openai SDK as this room uses it: no retries of its own, no rows in its log, and its errors in our words."""

import logging
import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ProviderError, needing
from .faults import RefusalError, http_fault, never_passes, transient, unsent

if TYPE_CHECKING:
    import openai

_T = TypeVar("_T")
_ours: ContextVar[bool] = ContextVar("dspyc_openai_call", default=False)


def make_client(
    base_url: str,
    api_key: str | None,
    timeout: float,
    credentials: str,
    organization: str | None = None,
    project: str | None = None,
) -> "openai.OpenAI":
    """A client for any server that speaks OpenAI's protocol. Its organization and project are those given here, and no others,
    whatever the SDK's own variables say.

    Raises:
        ConfigError: The SDK is not installed.
        ProviderError: No key is known.
    """
    with needing("openai", "Fine-tuning by OpenAI's protocol needs its SDK."):
        import openai
    _quieten()
    if not api_key:
        raise ProviderError("There is no key for OpenAI's protocol.", hint=credentials)
    # A repeated request could start a second job: what may be asked again is decided by the caller.
    client = openai.OpenAI(
        base_url=base_url,
        api_key=api_key,
        max_retries=0,
        timeout=timeout,
        default_headers=_account(openai.Omit(), organization, project),
    )
    client.organization, client.project = organization, project
    return client


def _account(none: Any, organization: str | None, project: str | None) -> Any:
    """What takes the place of the account in the SDK's own variable of headers; `none` stands for no header."""
    told = {"openai-organization": organization or none, "openai-project": project or none}
    lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
    names = [line.partition(":")[0].strip() for line in lines if ":" in line]
    return {name: told[name.lower()] for name in names if name.lower() in told}


class Asker:
    """Asks a server, and says what went wrong without the SDK's exception, whose request holds the key and the rows."""

    def __init__(self, server: str, credentials: str, secrets: tuple[str, ...]) -> None:
        self.server, self.credentials, self.secrets = server, credentials, secrets

    def ask(self, what: str, call: Callable[[], _T], hint: str = "") -> _T:
        """The answer of `call`, which does `what`.

        Raises:
            TransientError: A rate limit, a server's own error, a timeout or a lost connection.
            ProviderError: Any other refusal.
        """
        import openai

        token = _ours.set(True)
        try:
            return call()
        except openai.APITimeoutError:
            fault: ProviderError = transient(f"{self.server} did not answer in time: {what}.")
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            fault = (
                unsent(self.server, what, cause)
                if never_passes(cause)
                else transient(f"The connection to {self.server} failed: {what}: {cause}.")
            )
        except openai.APIStatusError as error:
            fault = self._refusal(what, error.status_code, error.code, error.message, error.response.headers, hint)
        except openai.OpenAIError as error:
            fault = ProviderError(f"{self.server}: {what} failed: {error}", hint=hint)
        except UnicodeEncodeError as error:
            fault = unsent(self.server, what, error)
        except (ValueError, AttributeError, TypeError):  # the SDK reads what it is sent as objects
            fault = ProviderError(f"{self.server} answered something that is not OpenAI's protocol: {what}.", hint=hint)
        finally:
            _ours.reset(token)
        raise fault

    def _refusal(
        self, what: str, status: int, code: Any, reason: str, headers: Mapping[str, str], hint: str
    ) -> ProviderError:
        if status == 429 and code in ("insufficient_quota", "billing_hard_limit_reached"):
            return RefusalError(f"{self.server}: {what}: {reason}", hint="Add credit to the account, and order again.")
        return http_fault(
            f"{self.server}: {what}",
            status,
            reason,
            headers,
            credentials=self.credentials,
            hint=hint if status != 401 else "",
            secrets=self.secrets,
        )


class _NoRows(logging.Filter):
    """Drops what the SDK logs at debug level about our own requests: it would be the training rows."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.DEBUG or not _ours.get()


_FILTER = _NoRows()


def _quieten() -> None:
    logging.getLogger("openai._base_client").addFilter(_FILTER)  # adding it twice changes nothing
