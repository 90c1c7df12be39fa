"""The engine behind a local language model: DSPy's engine contract over weights on this machine.

    engine = LocalEngine("Qwen/Qwen3-0.6B", adapter="runs/triage/adapter")
    lm = dspy.LM(engine.model_string, engine=engine, async_engine=AsyncLocalEngine(engine))  # of async_engine.py

The model string names the content of the weights, so DSPy's cache, which does not look at engines, never takes one
checkpoint's answer for another's.
"""

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dspy import lm15
from dspy.clients.engines.base import validate_request

from ..errors import DspycError, ModelError
from . import candidates, weights
from .chat import ChatTokenizer
from .choices import Choices, score
from .constrained import GRAMMAR
from .constraints import Constraint, constraint_of, refuse_cutting
from .generation import Job, Reply
from .limits import DEFAULT_MAX_TOKENS, room
from .loaded import loaded
from .memory import MemoryReport
from .messages import messages_of
from .replies import reply_message
from .sampling import Sampling
from .streaming import TextStream, delta, ending, token_logprobs

_UNSUPPORTED = ("response_format", "reasoning", "frequency_penalty", "presence_penalty", "probabilities")


class LocalEngine:
    """A causal language model in a Hugging Face folder, with a LoRA adapter on it if `adapter` is given.

    Weights load at the first request and are shared: by copies of the engine, and by all engines over the same base,
    whatever their adapters. Any number of threads may call `complete`; what waits together is answered in one batch.

    Args:
        model: A folder, a Hugging Face id, or "dspyc/tiny".
        adapter: A folder with a PEFT LoRA adapter for that model.
        device: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:1" or "mps".
        dtype: "auto" (on CUDA bfloat16, or float16 where the GPU has none; float32 elsewhere), "bfloat16", "float16" or
            "float32".

    Raises:
        ModelError: The files cannot be found or read.
        ConfigError: No such device or dtype.
    """

    modalities = frozenset({"text"})
    supports_reasoning = False
    supports_response_schema = False

    def __init__(
        self, model: str | Path, adapter: str | Path | None = None, *, device: str = "auto", dtype: str = "auto"
    ) -> None:
        weights.dtype_of(dtype, device)
        self.path = weights.resolve(model)
        self.adapter = weights.resolve(Path(adapter)) if adapter is not None else None
        weights.check(self.path, self.adapter)
        is_folder = str(model) != weights.TINY and Path(model).expanduser().is_dir()
        self.model = str(self.path) if is_folder else str(model)
        self.device, self.dtype = device, dtype
        self.identity = weights.identity(self.path, self.adapter)
        worn = f"+{self.adapter.name}" if self.adapter else ""
        self.model_string = f"local/{self.model.rstrip('/').rsplit('/', 1)[-1]}{worn}@{self.identity}"
        self.max_length = weights.context_length(self.path)
        self._vocabulary = weights.vocabulary_size(self.path)
        self._loaded = loaded(self.path, device, dtype)
        self._served: dict[str, LocalEngine] = {}
        self._calls = 0
        self._lock = threading.Lock()
        if self.adapter is not None:
            weakref.finalize(self, self._loaded.forget, self.identity).atexit = False
        _register(self)

    @property
    def calls(self) -> int:
        """Requests that the model has answered; answers from DSPy's cache do not count."""
        return self._calls

    @property
    def chat(self) -> ChatTokenizer:
        """The tokenizer that writes this engine's prompts."""
        return self._loaded.chat

    @property
    def supports_function_calling(self) -> bool:
        return self.chat.takes_tools

    @property
    def supported_params(self) -> set[str]:
        tools = {"tools", "tool_choice"} if self.supports_function_calling else set()
        return {"temperature", "max_tokens", "top_p", "top_k", "seed", "stop", "logprobs", "top_logprobs"} | tools

    @property
    def memory(self) -> MemoryReport | None:
        """Bytes of weights, adapters, prefixes and batch, and the plan that limits them; None while nothing is loaded."""
        return self._loaded.memory

    def complete(self, request: lm15.Request) -> lm15.Response:
        """Answer one request.

        Raises:
            dspy.lm15.ContextLengthError: The prompt does not fit the model.
            dspy.lm15.UnsupportedModelError: `request.model` names an engine that this process does not know.
            dspy.lm15.UnsupportedFeatureError: The request asks for what this engine does not do.
            dspy.lm15.ConfigurationError: The weights or the chat template cannot be used.
            dspy.lm15.ProviderError: The model failed.
        """
        if request.model != self.model_string:
            return self.serving(request.model).complete(request)
        with canonical_errors():
            if (choices := Choices.of(request)) is not None:
                return self._choose(request, choices)
            job = self._take(request)
            try:
                return self._response(request, job, job.reply.result())
            finally:
                job.reply.cancel()  # whoever stops waiting, by Ctrl-C for one, wants no more of it

    def stream(self, request: lm15.Request) -> Iterator[Any]:
        """The answer as stream events: text as it is written or, if tools are offered, all of it once it is complete.

        Closing the iterator ends the work on the answer.
        """
        if request.model != self.model_string:
            yield from self.serving(request.model).stream(request)
            return
        if request.tools:
            yield from lm15.response_to_events(self.complete(request))
            return
        written: queue.SimpleQueue[list[int] | None] = queue.SimpleQueue()
        with canonical_errors():
            job = self._submit_stream(request, written.put)
        job.reply.add_done_callback(lambda _: written.put(None))
        try:
            yield lm15.StreamStartEvent(model=request.model)
            text = TextStream(self.chat.decode, job.sampling.stop, self.chat.opening)
            while (ids := written.get()) is not None:
                if piece := text.add(ids):
                    yield delta(piece)
            with canonical_errors():
                reply = job.reply.result()
            yield from self._ending(job, reply, text)
        finally:
            job.reply.cancel()

    def close(self) -> None:
        """Free the weights. Engines over the same base load them again when they are next asked."""
        for engine in self._answering():
            engine._loaded.close()

    def serving(self, model_string: str) -> "LocalEngine":
        """The engine that answers for `model_string`, kept from now on.

        `lm.copy(model=…)`, which is how DSPy hands back a fine-tuned LM, keeps the engine and changes only the string.
        """
        found = self if model_string == self.model_string else self._served.get(model_string)
        if found is None:
            try:
                found = find_engine(model_string)
            except ModelError as error:
                raise lm15.UnsupportedModelError(str(error)) from error
            self._served[model_string] = found
        return found

    def dump_state(self) -> dict[str, Any]:
        """What `load_state` needs, as JSON: where the weights lie and what they were."""
        own, *served = [{**_recipe(engine), "identity": engine.identity} for engine in self._answering()]
        return {**own, **({"serves": served} if served else {})}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> "LocalEngine":
        """The engine that `dump_state` described.

        Raises:
            ModelError: The weights are gone, or are not the ones that were saved.
        """
        engine = cls(state["model"], state.get("adapter"), device=state["device"], dtype=state["dtype"])
        weights.refuse_changed(state["model"], saved=state["identity"], now=engine.identity)
        for served in state.get("serves", []):
            found = cls.load_state(served)
            engine._served[found.model_string] = found
        return engine

    def __deepcopy__(self, memo: dict[int, Any]) -> "LocalEngine":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return LocalEngine.load_state, (self.dump_state(),)

    def __repr__(self) -> str:
        return f"LocalEngine({self.model_string!r})"

    def _answering(self) -> "list[LocalEngine]":
        """This engine and those that it serves, directly or through others: two may serve each other."""
        found = [self]
        for engine in found:  # which grows meanwhile
            found += [other for other in list(engine._served.values()) if other not in found]
        return found

    def _take(self, request: lm15.Request) -> Job:
        """The answer to a request that is under way: one of the candidates that the call expects, or one of its own."""
        return candidates.take(request, lambda count: self._submit(request, count))

    def _submit(self, request: lm15.Request, count: int) -> list[Job]:
        """Begin `count` answers to a request. With a seed, each after the first draws by a seed of its own."""
        jobs = [self._job(request, at) for at in range(count)]
        self._loaded.submit(*jobs)
        return jobs

    def _submit_stream(self, request: lm15.Request, on_tokens: Callable[[list[int]], None]) -> Job:
        """Begin an answer that is read while it is written, the next of those that the call expects."""
        job = self._job(request, candidates.stream(), on_tokens)
        self._loaded.submit(job)
        return job

    def _job(self, request: lm15.Request, candidate: int, on_tokens: Callable[[list[int]], None] | None = None) -> Job:
        validate_request(request)
        _refuse_unsupported(request, self)
        messages, tools = messages_of(request)
        choice = request.config.tool_choice
        ids = self.chat.prompt_ids(messages, None if choice and choice.mode == "none" else tools)
        left = self._room(len(ids))
        config = request.config
        asked = config.max_tokens or DEFAULT_MAX_TOKENS
        sampling = Sampling(
            max_tokens=min(left, asked),
            temperature=config.temperature,
            top_p=config.top_p,
            top_k=config.top_k,
            seed=None if config.seed is None else config.seed + 1_000_003 * candidate,
            stop=config.stop,
            logprobs=config.logprobs,
        )
        adapter = (self.identity, self.adapter) if self.adapter else None
        constraint = self._constraint(request, asked, left, len(ids))
        return Job(ids, sampling, adapter, constraint, on_tokens=on_tokens)

    def _constraint(self, request: lm15.Request, asked: int, left: int, prompt: int) -> Constraint | None:
        """What holds the reply to the grammar that the request carries, if it carries one.

        Args:
            asked: The tokens that the reply may have by its settings.
            left: And those that the context leaves behind the `prompt` tokens.
        """
        grammar = (request.config.extensions or {}).get("metadata", {}).get(GRAMMAR)
        if grammar is None:
            return None
        refuse_cutting(request.config.stop, grammar)
        made = constraint_of(grammar, self.chat, max_tokens=asked, size=self._vocabulary)
        if asked <= left:
            return made
        try:
            return constraint_of(grammar, self.chat, max_tokens=left, size=self._vocabulary)
        except ModelError as error:
            raise lm15.ContextLengthError(
                f"The prompt has {prompt} tokens and {self.model_string} holds {self.max_length}, which leaves {left} to "
                "the reply: too few for any that follows the signature. "
                "Shorten the inputs, use fewer demos, or take a model with a longer context."
            ) from error

    def _choose(self, request: lm15.Request, choices: Choices) -> lm15.Response:
        """The probabilities that a request asks for."""
        ids = self.chat.prompt_ids(messages_of(request)[0])
        self._room(len(ids))
        adapter = (self.identity, self.adapter) if self.adapter else None
        found, tokens = score(
            choices, ids, self.chat, size=self._vocabulary, submit=self._loaded.submit, adapter=adapter
        )
        with self._lock:
            self._calls += 1
        return choices.response(request, found, lm15.Usage(input_tokens=len(ids), output_tokens=tokens))

    def _room(self, prompt: int) -> int:
        if self.max_length is None:
            return 2**31
        return room(prompt, self.max_length, self.model_string)

    def _response(self, request: lm15.Request, job: Job, reply: Reply) -> lm15.Response:
        message, called = reply_message(self.chat.opening.without(reply.text), tools=bool(request.tools))
        return lm15.Response(
            id=None,
            model=request.model,
            message=message,
            finish_reason="tool_call" if called else reply.finish_reason,
            usage=self._usage(job, reply),
            logprobs=self._logprobs(job, reply),
            logprobs_complete=reply.scores_complete,
        )

    def _ending(self, job: Job, reply: Reply, text: TextStream) -> Iterator[Any]:
        return ending(reply, text.finish(reply.text), self._usage(job, reply), self._logprobs(job, reply))

    def _usage(self, job: Job, reply: Reply) -> lm15.Usage:
        with self._lock:
            self._calls += 1
        return lm15.Usage(input_tokens=len(job.ids), output_tokens=reply.tokens, cache_read_tokens=reply.cached)

    def _logprobs(self, job: Job, reply: Reply) -> tuple[lm15.TokenLogprob, ...] | None:
        return None if job.sampling.logprobs is None else token_logprobs(reply.scores, self.chat.decode)


def find_engine(model_string: str) -> LocalEngine:
    """The engine behind a model string of this process; it is made again if it has been freed.

    Raises:
        ModelError: No engine of that name was made here, or its weights have changed since.
    """
    with _engines_lock:
        found, recipe = _engines.get(model_string), _recipes.get(model_string)
    if found is not None:
        return found
    if recipe is None:
        raise ModelError(
            f"This process knows no local model {model_string!r}.",
            hint="Make it first: dspyc.LocalLM(folder) or dspyc.LocalLM(base, adapter=folder).",
        )
    engine = LocalEngine(**recipe)
    if engine.model_string != model_string:
        raise ModelError(f"The weights behind {model_string!r} changed; they are {engine.model_string!r} now.")
    return engine


# Engines are remembered by how they are made, so that a name can always be found and weights can still be let go.
_engines: "weakref.WeakValueDictionary[str, LocalEngine]" = weakref.WeakValueDictionary()
_recipes: dict[str, dict[str, Any]] = {}
_engines_lock = threading.Lock()


def _recipe(engine: LocalEngine) -> dict[str, Any]:
    """What an equal engine is made with."""
    adapter = str(engine.adapter) if engine.adapter else None
    return {"model": engine.model, "adapter": adapter, "device": engine.device, "dtype": engine.dtype}


def _register(engine: LocalEngine) -> None:
    with _engines_lock:
        _recipes[engine.model_string] = _recipe(engine)
        _engines.setdefault(engine.model_string, engine)


def _refuse_unsupported(request: lm15.Request, engine: LocalEngine) -> None:
    config = request.config
    asked = [name for name in _UNSUPPORTED if getattr(config, name) is not None]
    asked += [str(name) for name, value in (config.extensions or {}).items() if not _is_grammar(name, value)]
    if config.tool_choice is not None and config.tool_choice.mode == "required":
        asked.append("tool_choice='required'")
    if asked:
        raise lm15.UnsupportedFeatureError(
            f"A local model does not take {', '.join(asked)}. "
            f"It takes {', '.join(sorted(engine.supported_params))}; leave the rest out.",
            feature=asked[0],
        )


def _is_grammar(name: str, value: Any) -> bool:
    """Whether an extension is the metadata that `ConstrainedLM` adds."""
    return name == "metadata" and set(value) == {GRAMMAR}


@contextmanager
def canonical_errors() -> Iterator[None]:
    """What goes wrong inside, as the errors that DSPy asks of an engine. None is retried: it would come again."""
    try:
        yield
    except (lm15.LM15Error, Warning, ImportError):
        raise
    except DspycError as error:
        raise lm15.ConfigurationError(str(error)) from error
    except Exception as error:
        raise lm15.ProviderError(f"The local model failed: {type(error).__name__}: {error}") from error
