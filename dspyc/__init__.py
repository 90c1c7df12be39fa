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
    from .compiler import Budget as Budget
    from .compiler import CompileReport as CompileReport
    from .compiler import load as load
    from .compiler import load_traces as load_traces
    from .compiler import save as save
    from .compiler import save_traces as save_traces
    from .errors import ArtifactError as ArtifactError
    from .errors import BootstrapError as BootstrapError
    from .errors import BudgetError as BudgetError
    from .errors import ConfigError as ConfigError
    from .errors import DataError as DataError
    from .errors import DspycError as DspycError
    from .errors import LedgerError as LedgerError
    from .errors import ModelError as ModelError
    from .errors import ProgramError as ProgramError
    from .errors import ProviderError as ProviderError
    from .errors import RegressionError as RegressionError
    from .errors import RenderError as RenderError
    from .errors import TrainingError as TrainingError
    from .errors import TransientError as TransientError
    from .errors import UnfinishedError as UnfinishedError
    from .models import ScriptedLM as ScriptedLM
    from .models import choice_probabilities as choice_probabilities
    from .optimizers import BetterTogether as BetterTogether
    from .optimizers import BootstrapFewShot as BootstrapFewShot
    from .optimizers import BootstrapFewShotWithRandomSearch as BootstrapFewShotWithRandomSearch
    from .optimizers import BootstrapFinetune as BootstrapFinetune
    from .optimizers import KNNFewShot as KNNFewShot
    from .optimizers import LabeledFewShot as LabeledFewShot
    from .providers import LM as LM
    from .providers import LocalLM as LocalLM
    from .providers import LocalProvider as LocalProvider
    from .signatures import TerseAdapter as TerseAdapter
    from .training import TrainingConfig as TrainingConfig

__version__ = "0.1.0"

_DOORS = {
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

__all__ = list(_DOORS)


def __getattr__(name: str) -> Any:
    if name in _SHOWN:  # as dspyc.compiler.read_run
        return importlib.import_module(f".{name}", __name__)
    if name not in _DOORS:
        raise AttributeError(f"module 'dspyc' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_DOORS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", *_SHOWN]
