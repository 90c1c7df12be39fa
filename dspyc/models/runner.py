"""The forward pass of a batch's step, and whether a model's architecture allows such steps at all."""

import inspect
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from . import cascade
from .batch import STEP_TOKENS, CascadeBatch, Start
from .cascade import Span, Step, StepCache
from .generation import Ending, Generation, Job
from .memory import is_out_of_memory
from .sampling import Sampling
from .store import Prefix, Store

_PROBED = (11, 7, 7)  # tokens of the prompts on which a model is tried; the first tokens are a shared prefix
_PREFIX = 4
_STEPS = 2
# Largest difference of scores between the two ways, as a share of the largest score.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}


Wearing = Callable[[Sequence[tuple[str | None, int]]], AbstractContextManager[None]]


class Runner:
    """Runs a model on the tokens of a `Step`; `wearing` puts on the adapters that runs of its tokens belong to."""

    def __init__(self, model: Any, wearing: Wearing) -> None:
        self._model = model
        self._wearing = wearing
        self._cache = StepCache()
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self._model.device)

    def read(
        self,
        ids: list[int],
        positions: list[int],
        step: Step,
        last: list[int],
        owners: list[tuple[str | None, int]],
    ) -> torch.Tensor:
        """Scores (len(last), vocabulary) behind the tokens at the offsets `last`; `owners` are adapters of runs of tokens."""
        device = self.device
        kept = torch.tensor(last, dtype=torch.long, device=device)
        extra: dict[str, Any] = {"logits_to_keep": kept} if self._keeps else {}
        with self._wearing(owners):
            output = self._model(
                input_ids=torch.tensor([ids], device=device),
                position_ids=torch.tensor([positions], device=device),
                past_key_values=self._cache,
                use_cache=True,
                step=step,
                **extra,
            )
        logits = output.logits[0] if extra else output.logits[0, kept]
        return logits.float()  # type: ignore[no-any-return]

    def prefix(self, ids: list[int], adapter: str | None, base: Prefix | None, shared: int) -> Prefix:
        """The prefix of these tokens, computed now; `base` holds the first `shared` of them already."""
        store, nobody = Store(1, len(ids) - shared), torch.empty(0, dtype=torch.long, device=self.device)
        for start in range(shared, len(ids), STEP_TOKENS):
            some = ids[start : start + STEP_TOKENS]
            span = Span(0, 0, len(some), start - shared, base, shared)
            step = Step(1, nobody, nobody, None, 0, None, [], [span], store)
            self.read(some, list(range(start, start + len(some))), step, [], [(adapter, len(some))])
        return Prefix(ids, adapter, store.taken(0, len(ids) - shared, base, shared))

    @torch.inference_mode()
    def qualify(self) -> int:
        """Make the model ready for steps, if they give what its own forward pass gives.

        The cache has to be plain keys and values, and the answers on a few tokens have to agree.

        Returns:
            The bytes that a token's keys and values take; 0 where the model does not qualify, and stays as it was.
        """
        layers = DynamicCache(config=self._model.config).layers
        if any(type(layer) is not DynamicLayer for layer in layers):
            return 0
        plain = self._model.config._attn_implementation
        try:
            expected = _unstepped(self._model)
            self._model.set_attn_implementation(cascade.NAME)
            found, size = self._stepped()
            same = bool((found - expected).abs().max() <= _TOLERANCE[self._model.dtype] * expected.abs().max())
        except Exception as error:  # whatever an architecture of another kind makes of this: it runs its own way
            if is_out_of_memory(error):
                raise
            same = False
        if not same:
            self._model.set_attn_implementation(plain)
        return size if same else 0

    def _stepped(self) -> tuple[torch.Tensor, int]:
        batch, prompts = CascadeBatch(self.read, self.device), _prompts(self._model)
        prefix = self.prefix(prompts[0][:_PREFIX], None, None, 0)
        rows = [Generation(Job(ids, Sampling(max_tokens=9)), Ending(set(), lambda _: "")) for ids in prompts]
        for row in rows[:-1]:
            batch.add(row, Start(prefix, _PREFIX))
        batch.add(rows[-1])
        found = []
        for _ in range(_STEPS):
            ready, logits = batch.forward()
            found.append(logits[[ready.index(row) for row in rows]])
            for row in ready:
                row.take(row.job.ids[len(row.written)])
        return torch.cat(found), batch.token_bytes


@torch.inference_mode()
def overflows(model: Any) -> bool:
    """Whether a model in float16, whose largest number is 65504, scores a few tokens with what is no number."""
    if model.dtype != torch.float16:
        return False
    try:
        scores = _unstepped(model)
    except Exception as error:  # of an architecture that cannot be asked so
        if is_out_of_memory(error):
            raise
        return False
    return not bool((scores < torch.inf).all())


def _prompts(model: Any) -> list[list[int]]:
    size = int(model.get_input_embeddings().weight.shape[0])
    prompts = [[(7 * place + 3 * row + 1) % size for place in range(n)] for row, n in enumerate(_PROBED)]
    return [prompts[0][:_PREFIX] + prompt[_PREFIX:] for prompt in prompts]


def _unstepped(model: Any) -> torch.Tensor:
    """A model's own scores behind the last tokens of a few prompts."""
    takes = inspect.signature(model.forward).parameters
    found = []
    for ids in _prompts(model):
        whole = torch.tensor([ids + ids[: _STEPS - 1]], device=model.device)
        extra = {"use_cache": False} if "use_cache" in takes else {}
        found.append(model(input_ids=whole, **extra).logits[0, -_STEPS:].float())
    return torch.stack(found, 1).flatten(0, 1)


def most_columns(model: Any) -> float:
    """The tokens, padding included, that a row of a padded batch may come to.

    The context, where the model counts padding too: its mask is a buffer of that width, or it takes no positions. Else any.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    masks = any(buffer.dtype == torch.bool and buffer.shape[-1:] == (context,) for buffer in model.buffers())
    counts = masks or "position_ids" not in inspect.signature(model.forward).parameters
    return context if context and counts else math.inf
