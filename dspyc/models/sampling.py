"""How a reply's next token is chosen from the model's scores: greedily, or drawn by temperature, top-k and top-p.

A request with a seed draws by a race: each token gets noise of the request's own generator, and the best sum wins. What
differs in the last bits of the scores, because other rows stand in the batch, does not change who wins. Requests without a
seed are drawn together, by one uniform number a row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

_COLDEST = 1e-5  # below this temperature, scaled logits overflow, and the likeliest token is certain anyway
_HEAD = 256  # tokens that are sorted first where top-p asks for the likeliest ones


@dataclass(frozen=True)
class Sampling:
    """How a reply is drawn. A temperature of None or 0 takes the likeliest token; a seed makes sampling repeatable.

    `logprobs` is None for none, else the number of likeliest alternatives that are given beside each token's own.
    """

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None

    @property
    def is_sampled(self) -> bool:
        return self.temperature is not None and self.temperature >= _COLDEST

    def generator(self, device: torch.device) -> torch.Generator | None:
        """The generator that a seed asks for; it belongs to one reply. Each kind of device has its own numbers."""
        if not self.is_sampled or self.seed is None:
            return None
        # torch takes the last 32 bits of a seed only; Python takes all, and spreads them.
        return torch.Generator(_drawing_on(device)).manual_seed(random.Random(self.seed).getrandbits(32))


def choose(
    logits: torch.Tensor, samplings: Sequence[Sampling], generators: Sequence[torch.Generator | None]
) -> list[int]:
    """A token for each row of `logits` (rows, vocabulary); tokens that may not be chosen score minus infinity."""
    tokens: list[int] = logits.argmax(-1).tolist()
    drawn = [i for i, sampling in enumerate(samplings) if sampling.is_sampled]
    if not drawn:
        return tokens
    scores = _narrowed(logits if len(drawn) == len(tokens) else logits[drawn], [samplings[i] for i in drawn])
    seeded = [at for at, i in enumerate(drawn) if generators[i] is not None]
    free = [at for at, i in enumerate(drawn) if generators[i] is None]
    if free:
        for at, token in zip(free, _inverse(_some(scores, free)), strict=True):
            tokens[drawn[at]] = token
    if seeded:  # last: memory that runs out for others may leave no generator ahead of its reply
        own = [generators[drawn[at]] for at in seeded]
        for at, token in zip(seeded, _race(_some(scores, seeded), own), strict=True):
            tokens[drawn[at]] = token
    return tokens


def _some(scores: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return scores if len(rows) == len(scores) else scores[rows]


def _narrowed(logits: torch.Tensor, samplings: Sequence[Sampling]) -> torch.Tensor:
    """`logits` over their temperatures, without what top-k and then top-p leave out."""
    temperatures = [sampling.temperature or 1.0 for sampling in samplings]
    scores = logits / torch.tensor(temperatures, device=logits.device)[:, None]
    for row, sampling in zip(scores, samplings, strict=True):
        if sampling.top_k is not None and sampling.top_k < len(row):
            kept, places = row.topk(sampling.top_k)
            row.fill_(-torch.inf)
            row[places] = kept
        if sampling.top_p is not None and sampling.top_p < 1:
            _keep_likeliest(row, sampling.top_p)
    return scores


def _keep_likeliest(row: torch.Tensor, top_p: float) -> None:
    """Leave the fewest likeliest tokens of `row` (vocabulary,) that hold `top_p` together, in place; one at least."""
    probabilities = row.softmax(-1)
    found, places = probabilities.topk(min(_HEAD, len(row)))
    if float(found.sum()) < top_p:
        found, places = probabilities.sort(descending=True, stable=True)
    before = found.cumsum(-1) - found
    count = max(1, int((before < top_p).sum()))
    kept = row[places[:count]]
    row.fill_(-torch.inf)
    row[places[:count]] = kept


def _race(scores: torch.Tensor, generators: Sequence[torch.Generator | None]) -> list[int]:
    """A token a row, each token's chance being its probability (the Gumbel-max trick)."""
    device = _drawing_on(scores.device)
    sums = scores.to(device, torch.float64, copy=True)  # all memory is taken before the first draw
    noise = torch.empty_like(sums)
    for row, generator in zip(noise, generators, strict=True):
        row.uniform_(generator=generator)
    waits = noise.clamp_(min=1e-300).log_().neg_()  # exponential, by one draw in double precision for each token
    return sums.sub_(waits.log_()).argmax(-1).tolist()


def _drawing_on(device: torch.device) -> torch.device:
    """Where numbers in double precision are drawn: Apple's MPS has none."""
    return torch.device("cpu") if device.type == "mps" else device


def _inverse(scores: torch.Tensor) -> list[int]:
    """A token a row: where a uniform number falls among the sums of the probabilities."""
    sums = scores.softmax(-1, dtype=torch.float32).cumsum(-1)
    total = sums[:, -1:]
    found = torch.searchsorted(sums, torch.rand_like(total) * total, right=True)
    last = sums.shape[-1] - 1
    tokens = found.clamp(max=last)
    beyond = scores.gather(-1, tokens) == -torch.inf  # a number that rounded up to the sum of all
    chosen: list[int] = torch.where(beyond, scores.argmax(-1, keepdim=True), tokens)[:, 0].tolist()
    return chosen
