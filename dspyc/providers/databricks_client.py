"""databricks-sdk as the provider uses it: loaded when first needed, and its faults explained."""

import configparser
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import ConfigError, ProviderError, TransientError, needing
from .faults import MissingError, TakenError

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
            if own.host and address(own.host) == address(host):
                return own
    return Config(host=host, profile=profile, token=token, retry_timeout_seconds=_RETRY_SECONDS)


def own_host(profile: str | None = None) -> str | None:
    """The workspace of the SDK's own configuration: by DATABRICKS_HOST, else by a profile in its file; None where only the SDK
    can find out."""
    named = os.environ.get("DATABRICKS_HOST")
    if named:
        return address(named)
    file = configparser.ConfigParser(default_section="", interpolation=None)  # no profile inherits from [DEFAULT] there
    with suppress(configparser.Error, OSError, ValueError):  # the SDK says what is wrong with its file
        file.read(Path(os.environ.get("DATABRICKS_CONFIG_FILE") or "~/.databrickscfg").expanduser())
    usual = file.get("__settings__", "default_profile", fallback="DEFAULT")
    found = file.get(profile or os.environ.get("DATABRICKS_CONFIG_PROFILE") or usual, "host", fallback=None)
    return address(found) if found else None


def address(host: str) -> str:
    """A workspace as the SDK names it: by https where nothing is said, without a slash at the end of its path."""
    parts = urlsplit(host if "://" in host else f"https://{host}")
    return parts._replace(path=parts.path.rstrip("/")).geturl()


def bearer(client: Any) -> dict[str, str]:
    """The token by which the SDK signs in, as an argument of `dspyc.LM`; one of OAuth serves for an hour."""
    kind, _, token = str(ask(client.config.authenticate).get("Authorization", "")).partition(" ")
    return {"api_key": token} if kind == "Bearer" else {}


def ask(call: Callable[[], _T]) -> _T:
    """An SDK call, its faults as ours, and never chained.

    Raises:
        TransientError: A fault that may pass.
        MissingError: There is no such thing.
        TakenError: There is one already.
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
    except errors.ResourceConflict as error:
        failure = TakenError(f"Databricks has it already: {error}")
    except (errors.TooManyRequests, errors.InternalError, errors.TemporarilyUnavailable) as error:
        failure = TransientError(f"Databricks is busy: {error}")
    except (errors.DeadlineExceeded, requests.RequestException, TimeoutError) as error:
        failure = TransientError(f"Databricks did not answer: {error.__cause__ or error}")  # why the SDK asked again
    except DatabricksError as error:
        failure = ProviderError(f"Databricks refused: {error}")
    except ValueError as error:
        failure = ProviderError(f"Databricks was not asked: {error}", hint=CREDENTIALS)
    raise failure
