"""Language models on this machine.

    engine = LocalEngine("dspyc/tiny")                     # or a folder, or a Hugging Face id
    lm = dspy.LM(engine.model_string, engine=engine, async_engine=AsyncLocalEngine(engine))
    lm("Hello")                                            # batched with whatever else is being asked

`LocalEngine` follows DSPy's engine contract; `find_engine` gives the engine behind a model string. `ChatTokenizer` turns
chat messages into token ids, the same ones for training and for inference. `ScriptedLM` is a language model whose answers
are a Python function: the test double that this project uses, and yours to use. `ServerEngine` asks a
model server instead, which it starts as a child process or finds at an address. `dspyc.LocalLM` wraps an engine as a
`dspy.LM`.
"""

from typing import TYPE_CHECKING

from ..doors import opened

if TYPE_CHECKING:
    from .async_engine import AsyncLocalEngine as AsyncLocalEngine
    from .chat import ChatTokenizer as ChatTokenizer
    from .constrained import ConstrainedLM as ConstrainedLM
    from .decisions import choice_probabilities as choice_probabilities
    from .engine import LocalEngine as LocalEngine
    from .engine import find_engine as find_engine
    from .messages import messages_of as messages_of
    from .scripted import ScriptedLM as ScriptedLM
    from .servers.async_engine import AsyncServerEngine as AsyncServerEngine
    from .servers.engine import ServerEngine as ServerEngine
    from .weights import identity as identity
    from .weights import load_model as load_model
    from .weights import load_tokenizer as load_tokenizer
    from .weights import resolve as resolve

_DOORS = {
    "AsyncLocalEngine": "async_engine",
    "AsyncServerEngine": "servers.async_engine",
    "ChatTokenizer": "chat",
    "ConstrainedLM": "constrained",
    "LocalEngine": "engine",
    "ScriptedLM": "scripted",
    "ServerEngine": "servers.engine",
    "choice_probabilities": "decisions",
    "find_engine": "engine",
    "identity": "weights",
    "load_model": "weights",
    "load_tokenizer": "weights",
    "messages_of": "messages",
    "resolve": "weights",
}

__all__ = list(_DOORS)
__getattr__ = opened(__name__, _DOORS)
