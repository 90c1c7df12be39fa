"""boto3 as the Bedrock provider uses it: loaded when first needed, asked without retries of its own, explained on failure."""

import logging
from collections.abc import Callable
from typing import Any

from ..errors import ConfigError, ProviderError, TransientError, needing
from .faults import MissingError, TakenError, retry_after, transient

CREDENTIALS = (
    "Credentials come from the SDK: `aws_profile`, AWS_* variables, `aws configure sso`, or the machine's role."
)

_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"})
_UNKNOWN = frozenset(
    {"UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "SignatureDoesNotMatch"}
)
_MISSING = frozenset({"ResourceNotFoundException", "NoSuchBucket", "NoSuchKey", "404"})
_PASSING = frozenset(
    {
        "ThrottlingException",
        "Throttling",
        "TooManyRequestsException",
        "SlowDown",
        "InternalServerException",
        "InternalFailure",
        "InternalError",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "RequestTimeout",
    }
)


def quieten() -> None:
    """Keep what boto3 says at debug level out of the log: its lines hold session tokens and rows. LiteLLM asks it as well."""
    for name in ("boto3", "botocore", "s3transfer"):
        if logging.getLogger(name).level < logging.INFO:
            logging.getLogger(name).setLevel(logging.INFO)


def client(service: str, profile: str | None, region: str | None, secrets: dict[str, str]) -> Any:
    """A boto3 client; `AWS_ENDPOINT_URL` and its like count, as everywhere.

    Raises:
        ConfigError: No boto3, an unknown profile, or no region.
    """
    with needing("'dspyc[bedrock]'", "Bedrock needs boto3."):
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    once = Config(retries={"total_max_attempts": 1, "mode": "standard"}, connect_timeout=20, read_timeout=60)
    try:
        return boto3.Session(profile_name=profile, region_name=region, **secrets).client(service, config=once)
    except (BotoCoreError, ValueError) as error:
        failure = ConfigError(f"AWS cannot be reached: {error}", hint=f"{CREDENTIALS} `aws_region` says where.")
    raise failure


def ask(call: Callable[..., Any], **arguments: Any) -> Any:
    """An SDK call, its faults as ours, and never chained: an SDK's exception may hold keys and rows.

    Raises:
        TransientError: A fault that may pass.
        MissingError: There is no such thing.
        TakenError: A name that is in use, or a state that does not allow it.
        ProviderError: What will not pass: expired credentials above all.
    """
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        return call(**arguments)
    except ClientError as error:
        failure = _refused(error.response, error.operation_name)
    except (BotoCoreError, Boto3Error) as error:
        failure = _unsent(error)
    raise failure


def _refused(response: Any, operation: str) -> ProviderError:
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    said = f"AWS refused {operation} ({code}): {response.get('Error', {}).get('Message', '')}"
    if code in _PASSING or status == 429 or status >= 500:
        return transient(said, retry_after(response.get("ResponseMetadata", {}).get("HTTPHeaders", {})))
    if code in _EXPIRED:
        return ProviderError(said, hint=f"The credentials have expired: sign in again. {CREDENTIALS}")
    if code in _UNKNOWN:
        return ProviderError(said, hint=f"AWS does not know these credentials. {CREDENTIALS}")
    if code in _MISSING:
        return MissingError(said, hint="Check its name, the account and the region.")
    if code == "ConflictException":
        return TakenError(said)
    if code in ("AccessDenied", "AccessDeniedException", "403"):
        return ProviderError(said, hint="Allow it to this identity, and let `role_arn` read and write `s3_path`.")
    return ProviderError(said)


def _unsent(error: Exception) -> ProviderError:
    from botocore import exceptions as known

    lasting = (known.NoCredentialsError, known.PartialCredentialsError, known.CredentialRetrievalError)
    if isinstance(error, lasting):
        return ProviderError(f"AWS was not asked: {error}", hint=CREDENTIALS)
    if isinstance(error, (known.TokenRetrievalError, known.SSOError)):
        return ProviderError(f"AWS was not asked: {error}", hint="Sign in again: `aws sso login`.")
    if isinstance(error, (known.ParamValidationError, known.UnknownServiceError)):
        return ProviderError(f"AWS was not asked: {error}")
    return TransientError(f"AWS did not answer: {error}")
