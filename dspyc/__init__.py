"""dspyc compiles DSPy programs into weights.

    import dspy, dspyc

    program = dspy.ChainOfThought("ticket -> intent: Literal['refund', 'delivery', 'other']")
    program.set_lm(dspyc.LocalLM("Qwen/Qwen3-0.6B"))
    optimizer = dspyc.BootstrapFinetune(metric=exact, teacher_lm=dspy.LM("openai/gpt-5-mini"))
    compiled = optimizer.compile(program, trainset=train, valset=val)
    compiled.save("triage")

Every name loads what it needs when it is first used: importing dspyc loads no torch and no provider's SDK.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import cli as cli
    from . import compiler as compiler
    from . import demo as demo
    from . import errors as errors
    from . import evaluation as evaluation
    from . import models as models
    from . import optimizers as optimizers
    from . import providers as providers
    from . import signatures as signatures
    from . import training as training
    from .compiler import Budget, CompileReport, load, load_traces, save, save_traces
    from .errors import (
        ArtifactError,
        BootstrapError,
        BudgetError,
        ConfigError,
        DataError,
        DspycError,
        LedgerError,
        ModelError,
        ProgramError,
        ProviderError,
        RegressionError,
        RenderError,
        TrainingError,
        TransientError,
        UnfinishedError,
    )
    from .models import ScriptedLM, choice_probabilities
    from .optimizers import (
        BetterTogether,
        BootstrapFewShot,
        BootstrapFewShotWithRandomSearch,
        BootstrapFinetune,
        KNNFewShot,
        LabeledFewShot,
    )
    from .providers import LM, LocalLM, LocalProvider
    from .signatures import TerseAdapter
    from .training import TrainingConfig

__version__ = "0.1.0"

_ROOMS = {
    "ArtifactError": "errors",
    "BetterTogether": "optimizers",
    "BootstrapError": "errors",
    "BootstrapFewShot": "optimizers",
    "BootstrapFewShotWithRandomSearch": "optimizers",
    "BootstrapFinetune": "optimizers",
    "Budget": "compiler",
    "BudgetError": "errors",
    "CompileReport": "compiler",
    "ConfigError": "errors",
    "DataError": "errors",
    "DspycError": "errors",
    "KNNFewShot": "optimizers",
    "LM": "providers",
    "LabeledFewShot": "optimizers",
    "LedgerError": "errors",
    "LocalLM": "providers",
    "LocalProvider": "providers",
    "ModelError": "errors",
    "ProgramError": "errors",
    "ProviderError": "errors",
    "RegressionError": "errors",
    "RenderError": "errors",
    "ScriptedLM": "models",
    "TerseAdapter": "signatures",
    "TrainingConfig": "training",
    "TrainingError": "errors",
    "TransientError": "errors",
    "UnfinishedError": "errors",
    "choice_probabilities": "models",
    "load": "compiler",
    "load_traces": "compiler",
    "save": "compiler",
    "save_traces": "compiler",
}

_SHOWN = (
    "cli",
    "compiler",
    "demo",
    "errors",
    "evaluation",
    "models",
    "optimizers",
    "providers",
    "signatures",
    "training",
)

__all__ = [  # noqa: RUF022 (in plain order)
    "ArtifactError",
    "BetterTogether",
    "BootstrapError",
    "BootstrapFewShot",
    "BootstrapFewShotWithRandomSearch",
    "BootstrapFinetune",
    "Budget",
    "BudgetError",
    "CompileReport",
    "ConfigError",
    "DataError",
    "DspycError",
    "KNNFewShot",
    "LM",
    "LabeledFewShot",
    "LedgerError",
    "LocalLM",
    "LocalProvider",
    "ModelError",
    "ProgramError",
    "ProviderError",
    "RegressionError",
    "RenderError",
    "ScriptedLM",
    "TerseAdapter",
    "TrainingConfig",
    "TrainingError",
    "TransientError",
    "UnfinishedError",
    "choice_probabilities",
    "load",
    "load_traces",
    "save",
    "save_traces",
]


def __getattr__(name: str) -> Any:
    if name in _SHOWN:  # as dspyc.compiler.read_run
        return importlib.import_module(f".{name}", __name__)
    if name not in _ROOMS:
        raise AttributeError(f"module 'dspyc' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", *_SHOWN]
