"""What a Bedrock job is told: `train_kwargs` checked, hyperparameters as the model takes them, names that AWS accepts.

Ranges: https://docs.aws.amazon.com/bedrock/latest/userguide/custom-models-hp.html
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ..errors import ConfigError
from .rows import Formatter
from .rows.bedrock import NOVA, TEXT
from .settings import check_choice, check_mapping, check_whole_setting, matched

ROLE = "DSPYC_BEDROCK_ROLE_ARN"  # the environment variable that stands in for `role_arn`

_ROLE_ARN = re.compile(r"arn:aws(-[^:]+)?:iam::\d{12}:role/.+")
_S3_PATH = re.compile(r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(/(?P<prefix>[\w./-]*))?", re.ASCII)
_NAME_LENGTH = 63

# Names in model strings, and the variants of these models that can be customized.
_CUSTOMIZABLE = {
    "amazon.nova-micro-v1": "amazon.nova-micro-v1:0:128k",
    "amazon.nova-lite-v1": "amazon.nova-lite-v1:0:300k",
    "amazon.nova-pro-v1": "amazon.nova-pro-v1:0:300k",
}


@dataclass(frozen=True)
class Range:
    """What a hyperparameter may be, and what it is where the caller says nothing (None: not sent)."""

    least: float
    most: float
    default: float | None
    whole: bool = True

    def text(self, name: str, value: Any) -> str:
        """The value as Bedrock takes it: text, without an exponent.

        Raises:
            ConfigError: No number, or out of the range.
        """
        try:
            number = Decimal(str(value))
        except ArithmeticError:
            number = Decimal("NaN")
        fits = number.is_finite() and Decimal(str(self.least)) <= number <= Decimal(str(self.most))
        if isinstance(value, bool) or not fits or (self.whole and number != number.to_integral_value()):
            kind = "whole numbers" if self.whole else "numbers"
            raise ConfigError(
                f"The hyperparameter {name} is {value!r}; this model takes {kind} from {self.least:g} to {self.most:g}.",
                hint=f"Leave it out for {self.default:g}."
                if self.default is not None
                else "Leave it out, or change it.",
            )
        return str(int(number)) if self.whole else format(number.normalize(), "f")


@dataclass(frozen=True)
class Family:
    """Models that take the same rows and hyperparameters."""

    prefix: str
    formatter: Formatter
    takes: Mapping[str, Range]
    on_demand: bool = False  # a deployment that costs nothing while nobody calls it


_OTHER = {
    "epochCount": Range(1, 100, 3),
    "batchSize": Range(1, 256, 4),
    "learningRate": Range(1e-7, 0.1, 1e-5, whole=False),
    "learningRateWarmupSteps": Range(0, 250, None),
}
_FAMILIES = (
    Family(
        "amazon.nova",
        NOVA,
        {
            "epochCount": Range(1, 5, 3),
            "learningRate": Range(1e-6, 1e-4, 1e-5, whole=False),
            "learningRateWarmupSteps": Range(0, 100, None),
        },
        on_demand=True,
    ),
    Family(
        "amazon.titan-text",
        TEXT,
        _OTHER
        | {
            "epochCount": Range(1, 10, 3),
            "batchSize": Range(1, 64, 4),
            "learningRate": Range(1e-7, 1e-5, 1e-5, whole=False),
        },
    ),
    Family(
        "meta.llama3",
        TEXT,
        {
            "epochCount": Range(1, 10, 3),
            "batchSize": Range(1, 1, 1),
            "learningRate": Range(5e-6, 0.1, 1e-5, whole=False),
        },
    ),
    Family("", TEXT, _OTHER),
)
_SHARED = frozenset(_OTHER)  # names that every guide uses: dropped where a model has none, as batchSize for Nova


@dataclass(frozen=True)
class BedrockSettings:
    """What the caller says of a job. Credentials are the SDK's: a profile's name, the environment, or the machine's role."""

    base: str
    bucket: str
    prefix: str
    role_arn: str
    hyperparameters: dict[str, str]
    job_name: str | None = None
    aws_profile: str | None = None
    aws_region: str | None = None
    start_endpoint: bool = True
    model_units: int = 1
    commitment: str | None = None
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def family(self) -> Family:
        return family(self.base)


def read_settings(model: str, train_kwargs: Mapping[str, Any]) -> BedrockSettings:
    """`train_kwargs` for a base model, checked before anything is sent.

    Args:
        model: A model string, "bedrock/amazon.nova-lite-v1", or a model's id or ARN.
        train_kwargs: `s3_path` (required), `role_arn` (or the variable DSPYC_BEDROCK_ROLE_ARN), `hyperparameters`,
            `job_name`, `aws_profile`, `aws_region`, `tags`; `start_endpoint` (default True where an idle one costs
            nothing; else it has to be said), `model_units` and `commitment` of provisioned throughput.

    Raises:
        ConfigError: A value that Bedrock would refuse, or a model that cannot be trained so.
    """
    base = base_model(model)
    s3_form = "'s3://your-bucket/folder/', of letters, digits, _, -, . and /"
    s3 = matched(train_kwargs, "s3_path", _S3_PATH, s3_form, "; rows go through S3")
    role = matched(
        {"role_arn": train_kwargs.get("role_arn") or os.environ.get(ROLE) or None},
        "role_arn",
        _ROLE_ARN,
        f"'arn:aws:iam::123456789012:role/name', or set {ROLE}; it needs access to s3_path",
        "; Bedrock reads the rows and writes the results as an IAM role of yours",
    )
    endpoint = train_kwargs.get("start_endpoint")
    if endpoint is not None and not isinstance(endpoint, bool):  # 0 is not False, and would start it
        raise ConfigError(f"`start_endpoint` is {endpoint!r}.", hint="Use True or False.")
    if endpoint is None and not family(base).on_demand:
        raise ConfigError(
            f"{base} is called through provisioned throughput, which costs by the hour until `job.stop_endpoint()`.",
            hint="Pass start_endpoint=True to have it started after training, or False to train alone.",
        )
    check_mapping(train_kwargs, "hyperparameters")
    check_mapping(train_kwargs, "tags")
    check_whole_setting(train_kwargs, "model_units")  # which AWS would refuse after the training was paid for
    check_choice(train_kwargs, "commitment", ("OneMonth", "SixMonths"))
    name, profile = train_kwargs.get("job_name"), train_kwargs.get("aws_profile")
    return BedrockSettings(
        base=base,
        bucket=s3["bucket"],
        prefix=(s3["prefix"] or "").strip("/"),
        role_arn=role[0],
        hyperparameters=hyperparameters(base, train_kwargs.get("hyperparameters") or {}),
        job_name=None if name is None else str(name),
        aws_profile=None if profile == "default" and not os.environ.get("AWS_PROFILE") else profile,
        aws_region=train_kwargs.get("aws_region"),
        start_endpoint=endpoint is not False,
        model_units=train_kwargs.get("model_units") or 1,
        commitment=train_kwargs.get("commitment"),
        tags={str(name): str(value) for name, value in (train_kwargs.get("tags") or {}).items()},
    )


def base_model(model: str) -> str:
    """The id of the model to customize, from a model string: "bedrock/us.amazon.nova-lite-v1:0" is Nova Lite's.

    Raises:
        ConfigError: A model whose rows no formatter here writes.
    """
    name = model.removeprefix("bedrock/").removeprefix("converse/").removeprefix("invoke/")
    if name.startswith("arn:"):
        return name
    name = re.sub(r"^(us|eu|apac|us-gov|global)\.", "", name)
    if name.startswith("anthropic."):
        raise ConfigError(
            f"{name} is not trained through dspyc: its rows have a form of their own.",
            hint="Use an Amazon Nova or Meta Llama model.",
        )
    return _CUSTOMIZABLE.get(name.removesuffix(":0"), name)


def family(base: str) -> Family:
    """How a base model, by its id or ARN, is trained."""
    name = base.partition("foundation-model/")[2] or base.partition("custom-model/")[2] or base
    return next(one for one in _FAMILIES if name.startswith(one.prefix))


def hyperparameters(base: str, given: Mapping[str, Any]) -> dict[str, str]:
    """What is sent: the caller's values and the defaults, as text, of those that this model takes.

    Raises:
        ConfigError: A name that no model takes, or a value out of the model's range.
    """
    takes = family(base).takes
    unknown = sorted(set(given) - set(takes) - _SHARED)
    if unknown:
        raise ConfigError(f"{base} takes no {', '.join(unknown)}.", hint=f"It takes {', '.join(takes)}.")
    wanted = {name: allowed.default if given.get(name) is None else given[name] for name, allowed in takes.items()}
    return {name: takes[name].text(name, value) for name, value in wanted.items() if value is not None}


def job_name(text: str, token: str) -> str:
    """A job's name that Bedrock takes, and that no other job has: letters, digits, inner hyphens and dots, 63 at most."""
    return _valid(text, token, r"[^a-zA-Z0-9.]+")


def model_name(text: str, token: str) -> str:
    """A name that Bedrock takes for a model or an endpoint: as a job's, without dots."""
    return _valid(text, token, r"[^a-zA-Z0-9]+")


def _valid(text: str, token: str, other: str) -> str:
    """Runs of other characters become one hyphen; a text that is too long is cut, and the token, which is not, ends it."""
    name = re.sub(other, "-", text)[: _NAME_LENGTH - len(token) - 1].strip("-.")
    return f"{name}-{token}" if name else token
