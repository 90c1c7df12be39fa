"""Demos that a predictor chooses by what it is asked: those of its pool whose inputs are most like the call's.

    choose_nearest(predictor, Nearest(4))                                                 # predictor.demos is the pool
    choose_nearest(predictor, Nearest(4, dspy.Embedder("openai/text-embedding-3-small")))

The method is that of Liu et al. (2022, arXiv 2101.06804). The choice is made inside the predictor's call, so that evaluation,
training rows and inference send the same prompts. A demo with the very inputs of the call is never shown: rows that are made
of the examples of the pool would have their answer in the prompt, and teach to copy it.
"""

import asyncio
import threading
from collections.abc import Mapping, Sequence
from operator import is_
from typing import Any, NamedTuple

import dspy

from ..errors import ConfigError
from .fingerprints import identifying, stable
from .likeness import Likeness, input_text, likeness_to, tfidf_class
from .mixins import Mixin, mix

_KEPT = 4  # pools: a predictor's, and those of copies that were changed


class Nearest:
    """How a predictor chooses: `k` of its pool, by the `vectorizer` (default: tf-idf, see `likeness`).

    Copies of a predictor share it, and so what it has computed of their pools.

    Raises:
        ConfigError: `k` is no number from 1, `vectorizer` is no `dspy.Embedder`, or without one scikit-learn is missing.
    """

    def __init__(self, k: int, vectorizer: dspy.Embedder | None = None) -> None:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise ConfigError(f"`k` is {k!r}; a whole number from 1 is allowed.")
        if vectorizer is not None and not isinstance(vectorizer, dspy.Embedder):
            raise ConfigError(
                f"`vectorizer` is a {type(vectorizer).__name__}; a dspy.Embedder is allowed.",
                hint="Wrap a function of texts: dspy.Embedder(function).",
            )
        if vectorizer is None:
            tfidf_class()
        self.k, self.vectorizer = k, vectorizer
        self._known: list[_Pool] = []
        self._lock = threading.Lock()

    def choose(self, predictor: dspy.Predict, inputs: Mapping[str, Any]) -> list[Any]:
        """The demos for one call, the most alike last, next to the question."""
        demos: list[Any] = vars(predictor)["demos"]
        if not demos:
            return []
        shown = {id(demo) for demo in predictor.demos}  # fewer than there are while one is withheld (compiler.withheld)
        pool, question = self._pool(demos, predictor.signature), input_text(predictor.signature, inputs)
        ranked = (-pool.likeness(question)).argsort(kind="stable")
        fit = (at for at in ranked if id(demos[at]) in shown and pool.texts[at] != question)
        return [demos[at] for at, _ in zip(fit, range(self.k), strict=False)][::-1]

    def state(self) -> dict[str, Any]:
        """JSON that `from_state` reads: of a function only its name, of a served vectorizer neither keys nor addresses."""
        made = self.vectorizer
        if made is None:
            return {"k": self.k, "vectorizer": None}
        if not isinstance(made.model, str):
            return {
                "k": self.k,
                "vectorizer": {"function": getattr(made.model, "__qualname__", type(made.model).__name__)},
            }
        settings = {"batch_size": made.batch_size, "caching": made.caching, **identifying(made.default_kwargs)}
        return {"k": self.k, "vectorizer": {"model": made.model, "settings": settings}}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], vectorizer: dspy.Embedder | None = None) -> "Nearest":
        """As `state` says, but by `vectorizer` where one is given.

        Raises:
            ConfigError: The state names a function, and no vectorizer is given.
        """
        told = state["vectorizer"]
        if vectorizer is not None or told is None:
            return cls(state["k"], vectorizer)
        if "function" in told:
            raise ConfigError(
                f"Demos are chosen by the vectorizer `{told['function']}`, a function, which is not saved.",
                hint="Pass it: dspyc.load(path, vectorizer=dspy.Embedder(function)).",
            )
        return cls(state["k"], dspy.Embedder(told["model"], **told["settings"]))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Nearest":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Nearest, (self.k, self.vectorizer)

    def _pool(self, demos: Sequence[Any], signature: type[dspy.Signature]) -> "_Pool":
        with self._lock:
            for pool in self._known:
                if len(pool.demos) == len(demos) and all(map(is_, pool.demos, demos)):
                    return pool
            texts = [input_text(signature, demo) for demo in demos]
            same = next((pool.likeness for pool in self._known if pool.texts == texts), None)
            made = _Pool(list(demos), texts, same or likeness_to(texts, self.vectorizer))
            self._known = [made, *self._known[: _KEPT - 1]]
            return made


class _Pool(NamedTuple):
    demos: list[Any]
    texts: list[str]
    likeness: Likeness


class NearestMixin(Mixin):
    """Each call shows the demos that `nearest` chooses; None shows all, as any predictor does."""

    nearest: Nearest | None = None
    demos: list[Any]

    def forward(self, **kwargs: Any) -> Any:
        if self.nearest is not None and "demos" not in kwargs:
            kwargs["demos"] = self.nearest.choose(self, kwargs)
        return super().forward(**kwargs)  # type: ignore[misc]

    async def aforward(self, **kwargs: Any) -> Any:
        if self.nearest is not None and "demos" not in kwargs:  # a thread, for an embedder may wait for its server
            kwargs["demos"] = await asyncio.to_thread(self.nearest.choose, self, kwargs)
        return await super().aforward(**kwargs)  # type: ignore[misc]

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.nearest = None

    def dump_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """DSPy's state, whose demos are the pool, and how it is chosen from. A plain predictor that reads it shows them all."""
        state: dict[str, Any] = super().dump_state(*args, **kwargs)  # type: ignore[misc]
        return state if self.nearest is None else {**state, "nearest": self.nearest.state()}

    def load_state(self, state: dict[str, Any], **kwargs: Any) -> Any:
        """Reads the states of any predictor; a vectorizer that is a function stays, where the state names one."""
        told, present = state.get("nearest"), self.nearest
        super().load_state({k: v for k, v in state.items() if k != "nearest"}, **kwargs)  # type: ignore[misc]
        function = told is not None and "function" in (told["vectorizer"] or {})
        kept = present.vectorizer if function and present is not None else None
        self.nearest = None if told is None else Nearest.from_state(told, kept)
        return self


def choice_key(predictor: dspy.Predict) -> list[Any]:
    """JSON that changes with how `predictor` chooses its demos; empty where it shows them all."""
    nearest = predictor.nearest if isinstance(predictor, NearestMixin) else None
    return [] if nearest is None else [stable(nearest.state())]


def choose_nearest(predictor: dspy.Predict, nearest: Nearest) -> None:
    """Make `predictor`, in place, one that chooses from its demos for each call."""
    mix(predictor, NearestMixin)
    predictor.nearest = nearest
