"""databricks-sdk as the provider uses it: loaded when first needed, and its faults explained."""

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from ..errors import ConfigError, ProviderError, TransientError, needing
from .faults import MissingError

CREDENTIALS = (
    "Credentials come from the SDK: DATABRICKS_HOST and DATABRICKS_TOKEN, `databricks auth login`, or a profile "
    "(`databricks_profile`)."
)
_RETRY_SECONDS = 1  # of the SDK itself; the job asks again, and longer
_T = TypeVar("_T")


def client(host: str | None, profile: str | None, token: str | None) -> Any:
    """A WorkspaceClient; what is not given comes from the SDK's own configuration.

    Raises:
        ConfigError: No databricks-sdk, or no credentials.
    """
    with needing("'dspyc[databricks]'", "Databricks needs databricks-sdk."):
        from databricks.sdk import WorkspaceClient
    if logging.getLogger("databricks.sdk").level < logging.INFO:  # its debug lines hold rows and answers
        logging.getLogger("databricks.sdk").setLevel(logging.INFO)
    try:
        return WorkspaceClient(config=_configured(host, profile, token))
    except ValueError as error:
        failure = ConfigError(f"Databricks cannot be reached: {str(error).partition('. Config:')[0]}", hint=CREDENTIALS)
    raise failure


def _configured(host: str | None, profile: str | None, token: str | None) -> Any:
    """The SDK's own configuration where it is for this host: told a host, the SDK reads no file of profiles."""
    from databricks.sdk.config import Config

    if host and not profile:
        with suppress(ValueError):
            own = Config(token=token, retry_timeout_seconds=_RETRY_SECONDS)
            if str(own.host).rstrip("/") == host.rstrip("/"):
                return own
    return Config(host=host, profile=profile, token=token, retry_timeout_seconds=_RETRY_SECONDS)


def bearer(client: Any) -> dict[str, str]:
    """The token by which the SDK signs in, as an argument of `dspyc.LM`; one of OAuth serves for an hour."""
    kind, _, token = str(ask(client.config.authenticate).get("Authorization", "")).partition(" ")
    return {"api_key": token} if kind == "Bearer" else {}


def ask(call: Callable[[], _T]) -> _T:
    """An SDK call, its faults as ours, and never chained.

    Raises:
        TransientError: A fault that may pass.
        MissingError: There is no such thing.
        ProviderError: What will not pass: wrong credentials above all.
    """
    import requests
    from databricks.sdk import errors
    from databricks.sdk.errors.base import DatabricksError

    try:
        return call()
    except (errors.Unauthenticated, errors.PermissionDenied) as error:
        failure = ProviderError(f"Databricks refused: {error}", hint=CREDENTIALS)
    except errors.NotFound as error:
        failure = MissingError(f"Databricks does not have it: {error}")
    except (errors.TooManyRequests, errors.InternalError, errors.TemporarilyUnavailable) as error:
        failure = TransientError(f"Databricks is busy: {error}")
    except (errors.DeadlineExceeded, requests.RequestException, TimeoutError) as error:
        failure = TransientError(f"Databricks did not answer: {error.__cause__ or error}")  # why the SDK asked again
    except DatabricksError as error:
        failure = ProviderError(f"Databricks refused: {error}")
    except ValueError as error:
        failure = ProviderError(f"Databricks was not asked: {error}", hint=CREDENTIALS)
    raise failure
