"""What a model answers to one prompt alone, by transformers' own `generate`: what batches are compared with."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dspyc.models import load_tokenizer
from dspyc.models.generation import Job
from dspyc.models.loaded import LoadedModel, loaded
from dspyc.models.sampling import Sampling


@lru_cache(maxsize=16)
def _model(folder: Path, adapter: Path | None) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter)


def answer(folder: Path, ids: list[int], tokens: int, adapter: Path | None = None) -> str:
    """The greedy reply of at most so many tokens."""
    prompt = torch.tensor([ids])
    out = _model(folder, adapter).generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False
    )
    return str(load_tokenizer(folder).decode(out[0, len(ids) :], skip_special_tokens=True))


def is_greedy(folder: Path, ids: list[int], reply: list[int]) -> bool:
    """Whether each token of a reply is the likeliest behind those before it, or as likely but for the rounding of sums."""
    scores = _model(folder, None)(torch.tensor([ids + reply])).logits[0, len(ids) - 1 : -1]
    chosen = scores.gather(1, torch.tensor(reply)[:, None])[:, 0]
    return bool((scores.max(-1).values - chosen < 1e-3).all())


def model(folder: Path) -> LoadedModel:
    """The live batch of a folder's weights."""
    return loaded(folder, "cpu", "float32")


def replies(folder: Path, *jobs: Job) -> list[str]:
    """The texts of jobs that are submitted together."""
    return [future.result(60).text for future in model(folder).submit(*jobs)]


def greedy(ids: list[int], tokens: int, **more: Any) -> Job:
    """A job for the likeliest tokens."""
    return Job(list(ids), Sampling(max_tokens=tokens), **more)
