"""The learning-rate range test: Smith, 2017, "Cyclical Learning Rates for Training Neural Networks", arXiv 1506.01186."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from ..errors import ConfigError, TrainingError
from ..models.chat import ChatTokenizer
from ..models.longrope import short_length
from ..models.weights import device_of, load_tokenizer, resolve
from ..progress import bar
from .alone import alone
from .batching import Steps, weight_of
from .config import TrainingConfig
from .loss import Learner
from .methods import check_method, choose_attention, embedding_dropout, prepare
from .out_of_memory import in_smaller_parts
from .precision import autocast, autocast_dtype
from .rows import EncodedRow, encode_rows, row_limit
from .sharing import Planner

_SMOOTHING = 0.9  # of the loss, an exponential mean
_BLOWN_UP = 4.0  # times the lowest loss: higher rates only get worse


@dataclass(frozen=True)
class LearningRates:
    """What a range test saw: the mean loss in nats, smoothed, at each rate that was tried, and what follows from it."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        """The rate in the middle of the stretch over which the loss fell most, by the logarithm of the rate.

        A stretch is a quarter of all rates, as a few batches' losses differ by more than they fall. The first tenth of the
        rates is left out: the running mean of few losses jumps.
        """
        reach = max(1, len(self.rates) // 4)
        first = len(self.rates) // 10
        falls = [b - a for a, b in zip(self.losses[first:], self.losses[first + reach :], strict=False)]
        return self.rates[first + falls.index(min(falls)) + reach // 2]


def find_learning_rate(
    model: str | Path | None,
    rows: Sequence[Mapping[str, Any]],
    *,
    config: TrainingConfig | None = None,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    device: str = "auto",
    show_progress: bool = True,
) -> LearningRates:
    """Train a copy of `model` for at most `steps` steps while the rate rises from `lowest` to `highest`; nothing is kept.

    It stops early where the loss blows up. Method, batch and precision are the config's; its schedule and rate are not used.

        rate = find_learning_rate("dspyc/tiny", rows, config=TrainingConfig(method="full")).suggestion

    Raises:
        ConfigError: `lowest` to `highest` is not a range, or this machine cannot train with the settings.
        DataError, ModelError: As for `train`.
        TrainingError: The loss is not a number at the lowest rate, or a single row does not fit into memory.
    """
    if not 0 < lowest < highest or steps < 10:
        raise ConfigError(
            f"lowest, highest and steps are {lowest:g}, {highest:g} and {steps}.",
            hint="Use rates with 0 < lowest < highest, and at least 10 steps.",
        )
    config, place = config or TrainingConfig(), device_of(device)
    base = resolve(config.base(model))
    check_method(config, place)
    tokenizer = load_tokenizer(base)
    encoded, report = encode_rows(rows, ChatTokenizer(tokenizer), row_limit(base, tokenizer, config.max_length))
    rates = [lowest * (highest / lowest) ** (i / (steps - 1)) for i in range(steps)]
    with alone(place):
        set_seed(config.seed)
        return _tried(base, tokenizer, encoded, report.max_length, config, place, rates, show_progress)


def _tried(
    base: Path,
    tokenizer: Any,
    rows: list[EncodedRow],
    longest: int,
    config: TrainingConfig,
    place: torch.device,
    rates: list[float],
    show_progress: bool,
) -> LearningRates:
    student = prepare(base, config, str(place))
    choose_attention(student, longest)
    learner = Learner.of(student, tokenizer, rows, config)
    order = Steps.of(rows, config)
    batches = ([rows[i] for i in step] for step in itertools.chain.from_iterable(itertools.repeat(order)))
    with (
        embedding_dropout(student, config.embedding_dropout),
        bar("Trying learning rates", len(rates), show=show_progress) as advance,
    ):
        return _rising(learner, zip(rates, batches, strict=False), config, advance)


def _rising(learner: Learner, batches: Any, config: TrainingConfig, advance: Any) -> LearningRates:
    short = short_length(learner.model.config)
    planner = Planner.of(learner.device.type, config.micro_batch_tokens, share=False, short=short)
    trained = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=config.weight_decay)
    dtype = autocast_dtype(config.precision, learner.device)
    scaler = torch.amp.GradScaler(learner.device.type, enabled=dtype is torch.float16)
    learner.train()
    losses: list[float] = []
    rates: list[float] = []
    smooth = 0.0
    for rate, rows in batches:
        optimizer.param_groups[0]["lr"] = rate
        weight = sum(weight_of(row, config.prompt_loss_weight) for row in rows)
        compute = partial(learner.learn_all, weight=weight, precision=autocast(dtype, learner.device), scaler=scaler)
        found, planner = in_smaller_parts(
            learner, planner, partial(Planner.__call__, rows=rows), compute, len(rates) + 1
        )
        loss = float(found)
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm or math.inf)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if not math.isfinite(loss):
            break
        smooth = _SMOOTHING * smooth + (1 - _SMOOTHING) * loss
        losses.append(smooth / (1 - _SMOOTHING ** (len(losses) + 1)))
        rates.append(rate)
        advance(1, note=f"rate {rate:.1e}, loss {loss:.3f}")
        if losses[-1] > _BLOWN_UP * min(losses):
            break
    if len(losses) < 2:
        raise TrainingError(
            "The loss is no number from the lowest rates on.", hint="Use a smaller lowest=, or precision='fp32'."
        )
    return LearningRates(tuple(rates), tuple(losses))
