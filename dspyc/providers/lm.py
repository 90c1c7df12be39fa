"""`LM`: a `dspy.LM` that can be fine-tuned where its name says."""

from typing import Any

import dspy

from ..errors import ConfigError, has_secret
from .catalog import called, provider_class, provider_name
from .local import LocalLM

_HERE = ("local/", "dspyc/")


def LM(model: str | dspy.BaseLM, **settings: Any) -> dspy.LM:  # noqa: N802 (reads as a class)
    """A `dspy.LM` whose provider is found from its name.

        lm = LM("openai/gpt-4.1-mini-2025-04-14")        # also azure/, bedrock/, databricks/, together_ai/, fireworks_ai/,
        job = lm.finetune(rows, TrainDataFormat.CHAT)    # vertex_ai/, and dspyc/tiny or local/<folder or hub id> for here

    Args:
        model: `provider/model`. Models of other providers can be called but not trained. An LM, such as a job's result,
            is copied.
        **settings: Those of `dspy.LM`, and what the provider needs to be reached (docs/providers.md): `api_base`, `api_key`,
            `aws_profile`, … Secrets stay in memory.

    Raises:
        ConfigError: An address with a secret in it, or, for a model here, a setting that it does not have.
    """
    if isinstance(model, dspy.BaseLM):
        return model.copy(**settings)
    if not isinstance(model, str) or not model.strip():
        raise ConfigError(
            f"LM's model is {model!r}.", hint="Give it as provider/model: 'openai/gpt-4.1-mini-2025-04-14'."
        )
    if model.startswith(_HERE):
        return LocalLM(model.removeprefix("local/"), **settings)
    for key, value in settings.items():
        if isinstance(value, str) and has_secret(value):
            raise ConfigError(f"`{key}` holds a secret, and addresses are kept.", hint="Pass it by `api_key`.")
    model = called(model)
    name = provider_name(model)
    if "provider" not in settings and name is not None:
        kind = provider_class(name)
        settings["provider"] = kind(
            kind.environment() | {k: settings[k] for k in kind.connects if settings.get(k) is not None},
            {k: settings[k] for k in kind.secret if settings.get(k) is not None},
        )
        settings = {**settings["provider"].calling(), **settings}
    return dspy.LM(model, **settings)
