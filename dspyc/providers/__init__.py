"""Where a language model's weights are changed: one file a provider, all behind DSPy's own `lm.finetune(…)`.

    lm = LocalLM("Qwen/Qwen3-0.6B", max_tokens=256)        # a dspy.LM over weights on this machine
    lm = LM("openai/gpt-4.1-mini-2025-04-14")              # a dspy.LM elsewhere, its provider found from its name
    job = lm.finetune(rows, TrainDataFormat.CHAT, {"n_epochs": 3})
    tuned = job.result()                                   # a dspy.LM over the new weights
    job = attach(job.id)                                   # the same job, in another process

A provider subclasses `dspy.clients.provider.Provider`, so plain DSPy programs and optimizers can use it as well; one elsewhere
subclasses `RemoteProvider`, whose file says how.
"""

from typing import TYPE_CHECKING

from ..doors import opened

if TYPE_CHECKING:
    from .job import RemoteJob as RemoteJob
    from .known import attach as attach
    from .known import forget as forget
    from .lm import LM as LM
    from .local import LocalLM as LocalLM
    from .local import LocalProvider as LocalProvider
    from .local import LocalTrainingJob as LocalTrainingJob
    from .remote import JobStatus as JobStatus
    from .remote import RemoteProvider as RemoteProvider

_DOORS = {
    "JobStatus": "remote",
    "LM": "lm",
    "LocalLM": "local",
    "LocalProvider": "local",
    "LocalTrainingJob": "local",
    "RemoteJob": "job",
    "RemoteProvider": "remote",
    "attach": "known",
    "forget": "known",
}

__all__ = list(_DOORS)
__getattr__ = opened(__name__, _DOORS)
