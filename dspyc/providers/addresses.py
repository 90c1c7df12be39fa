"""Addresses of servers in one form, however they were typed: they are a part of a job's identity."""

import re
from urllib.parse import urlsplit

from ..errors import ConfigError

_HOST = re.compile(r"[^\s/@]+")


def base_address(text: object, name: str) -> str:
    """An address without a slash at its end, its host in lower case.

    Raises:
        ConfigError: It is none of http or https with a host. `name` is what it was given as.
    """
    hint = "Give it with its scheme, as in 'https://host/v1'."
    if not isinstance(text, str):
        raise ConfigError(f"`{name}` is a {type(text).__name__}.", hint=hint)
    # Without a scheme no redaction finds the password before an @.
    shown = "a text with an @ (it may hold a password, and is not shown)" if "@" in text else repr(text)
    try:
        parts = urlsplit(text.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"`{name}` is {shown}, which cannot be read as an address.", hint=hint) from None
    if parts.scheme not in ("http", "https") or not host or not _HOST.fullmatch(parts.netloc):
        raise ConfigError(f"`{name}` is {shown}, which is no address of http or https.", hint=hint)
    return parts._replace(netloc=parts.netloc.lower(), path=parts.path.rstrip("/")).geturl()
