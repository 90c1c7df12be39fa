"""Settings act inside `train`: each is seen by what it changes in a step or two of a run, not by what the config holds."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForCausalLM

from dspyc.models import ChatTokenizer
from dspyc.training import Callback, TrainingConfig, TrainingResult, train
from dspyc.training.events import read_events
from dspyc.training.loss import Learner
from dspyc.training.precision import autocast_dtype
from dspyc.training.rows import encode_rows
from dspyc.training.sharing import Tree

from . import small
from .test_loss import plain_loss

RATE = 0.01
ONE_STEP: dict[str, Any] = {
    "method": "full",
    "precision": "fp32",
    "batch_size": 20,
    "max_steps": 1,
    "shared_prefix": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Far from the uniform guess of small weights, whose loss hardly knows smoothing."""
    return small.folder(tmp_path_factory.mktemp("base") / "model", initializer_range=0.3)


class Looking(Callback):
    """Registers a hook on all modules once the run has started: what is tried out before the first step is not looked at."""

    def __init__(self, register: Callable[[Any], Any], look: Callable[..., None]) -> None:
        self.register, self.look = register, look
        self.hook: Any = None

    def on_start(self, report: dict[str, Any]) -> None:
        self.hook = self.register(self.look)


def run(base: Path, out: Path, looking: Looking | None = None, **settings: Any) -> TrainingResult:
    """One step from all of 20 rows, which are the validation rows too."""
    config = TrainingConfig(**{**ONE_STEP, "learning_rate": RATE, "logging_steps": 1, **settings})
    how: dict[str, Any] = {"output_dir": out, "device": "cpu", "callbacks": [looking] if looking else []}
    try:
        return train(str(base), small.rows(20), config=config, validation=small.rows(20), **how)
    finally:
        if looking is not None:
            looking.hook.remove()


def test_a_token_budget_makes_as_many_steps_as_its_tokens_fill(base: Path, tmp_path: Path) -> None:
    tokens = sum(map(len, small.encoded(20)))
    sizes = {"batch_size": None, "max_steps": None, "token_budget": 100, "gradient_accumulation": 2, "epochs": 2}
    assert run(base, tmp_path, **sizes).steps == 2 * math.ceil(tokens / 200) > 2


def half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        ({"scheduler": "linear", "warmup_steps": 0}, [1, 3 / 4, 2 / 4, 1 / 4]),
        ({"scheduler": "linear", "warmup_steps": 2}, [1 / 3, 2 / 3, 1, 1 / 2]),
        ({"scheduler": "linear", "warmup_ratio": 0.5}, [1 / 3, 2 / 3, 1, 1 / 2]),
        ({"scheduler": "cosine", "warmup_steps": 1}, [1 / 2, 1, half_cosine(1 / 3), half_cosine(2 / 3)]),
        ({"scheduler": "constant"}, [1 / 2, 1, 1, 1]),
        ({"scheduler": "one_cycle"}, [1 / 25, (1 + 1 / 25) / 2, 1, 1 / 250_000]),
    ],
)
def test_the_rate_of_every_step_is_that_of_its_schedule(
    base: Path, tmp_path: Path, settings: dict[str, Any], factors: list[float]
) -> None:
    used: list[float] = []
    hook = register_optimizer_step_pre_hook(lambda optimizer, *_: used.append(optimizer.param_groups[0]["lr"]))
    try:
        run(base, tmp_path, max_steps=4, **settings)
    finally:
        hook.remove()
    assert used == pytest.approx([RATE * factor for factor in factors])
    assert [e["learning_rate"] for e in read_events(tmp_path / "events.jsonl") if "loss" in e] == used


@pytest.mark.parametrize(("smoothing", "prompt_weight"), [(0.2, 0.0), (0.0, 0.3), (0.2, 0.3)])
def test_the_loss_is_smoothed_and_weighted_and_the_validation_loss_is_not(
    base: Path, tmp_path: Path, smoothing: float, prompt_weight: float
) -> None:
    settings = {"label_smoothing": smoothing, "prompt_loss_weight": prompt_weight, "learning_rate": 1e-12}
    result = run(base, tmp_path, **settings)
    model, rows = AutoModelForCausalLM.from_pretrained(base), small.encoded(20)
    with torch.no_grad():
        plain, changed = float(plain_loss(model, rows)), float(plain_loss(model, rows, smoothing, prompt_weight))
    assert result.train_loss == pytest.approx(changed, rel=1e-5)
    assert result.validation_loss == pytest.approx(plain, rel=1e-5)
    assert result.train_loss != pytest.approx(plain, rel=1e-3)


def test_a_step_is_adamws_with_decay_of_matrices_alone(base: Path, tmp_path: Path) -> None:
    result = run(base, tmp_path, weight_decay=0.5, warmup_steps=0, max_grad_norm=0.0)
    model = AutoModelForCausalLM.from_pretrained(base)
    norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.5},
        {"params": norms, "weight_decay": 0.0},
    ]
    assert norms
    plain_loss(model, small.encoded(20)).backward()
    torch.optim.AdamW(groups, lr=RATE).step()
    trained = load_file(Path(result.path) / "model.safetensors")
    for name, parameter in model.named_parameters():  # Adam magnifies what rounding does to gradients near zero
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=0, atol=0.02 * RATE)


@pytest.mark.parametrize("most", [0.0, 0.05])
def test_gradients_are_cut_to_the_norm_that_is_set(base: Path, tmp_path: Path, most: float) -> None:
    found: list[float] = []

    def look(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        found.append(float(torch.nn.utils.get_total_norm(gradients)))

    hook = register_optimizer_step_pre_hook(look)
    try:
        run(base, tmp_path, max_grad_norm=most)
    finally:
        hook.remove()
    (event,) = (e for e in read_events(tmp_path / "events.jsonl") if "loss" in e)
    assert event["grad_norm"] > 0.1
    assert found == pytest.approx([most or event["grad_norm"]], rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_what_embeddings_give_is_dropped_in_steps_and_not_in_evaluations(
    base: Path, tmp_path: Path, share: float
) -> None:
    zeros: dict[bool, float] = {}

    def look(module: torch.nn.Module, args: Any) -> None:
        if type(module).__name__ == "LlamaDecoderLayer" and getattr(module.self_attn, "layer_idx", None) == 0:
            tokens = args[0][args[0].any(-1)]  # the padding's embedding is zero
            zeros[module.training] = float((tokens == 0).float().mean())

    run(base, tmp_path, Looking(register_module_forward_pre_hook, look), embedding_dropout=share)
    assert zeros == {True: pytest.approx(share, abs=0.02), False: 0.0}


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_what_an_adapter_reads_is_dropped_in_steps_and_not_in_evaluations(
    base: Path, tmp_path: Path, share: float
) -> None:
    zeros: dict[bool, list[float]] = {True: [], False: []}

    def look(module: torch.nn.Module, args: Any) -> None:
        if isinstance(module, torch.nn.Linear) and module.out_features == 3:
            tokens = args[0][args[0].any(-1)]
            zeros[module.training].append(float((tokens == 0).float().mean()))

    settings = {"method": "lora", "lora_rank": 3, "lora_dropout": share}
    run(base, tmp_path, Looking(register_module_forward_pre_hook, look), **settings)
    assert len(zeros[True]) >= 14  # seven matrices in each of two layers
    assert zeros[True] == [pytest.approx(share, abs=0.02)] * len(zeros[True])
    assert set(zeros[False]) == {0.0}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointed_layers_are_computed_twice_a_step_and_give_the_same(
    base: Path, tmp_path: Path, method: str
) -> None:
    calls = {True: 0, False: 0}
    losses: list[tuple[float, float]] = []
    for checkpointed in calls:

        def look(module: torch.nn.Module, _: Any, checkpointed: bool = checkpointed) -> None:
            calls[checkpointed] += module.training and type(module).__name__ == "LlamaAttention"

        looking, out = Looking(register_module_forward_pre_hook, look), tmp_path / str(checkpointed)
        run(base, out, looking, method=method, gradient_checkpointing=checkpointed)
        losses += [(e["loss"], e["grad_norm"]) for e in read_events(out / "events.jsonl") if "loss" in e]
    assert calls[True] == 2 * calls[False] > 0
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "auto"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_products_are_in_the_precision_that_is_set_and_weights_in_float32(
    base: Path, tmp_path: Path, method: str, precision: str
) -> None:
    kinds: dict[str, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
    kinds["auto"] = autocast_dtype("auto", torch.device("cpu"))
    seen: set[tuple[bool, torch.dtype, torch.dtype]] = set()

    def look(module: torch.nn.Module, _: Any, output: Any) -> None:
        if type(module) is torch.nn.Linear:
            seen.add((module.training, module.weight.dtype, output.dtype))

    run(base, tmp_path, Looking(register_module_forward_hook, look), method=method, precision=precision)
    assert seen == {(training, torch.float32, kinds[precision] or torch.float32) for training in (True, False)}


def test_the_validation_loss_of_many_rows_is_that_of_all_of_them_at_once(base: Path, tmp_path: Path) -> None:
    """More than are planned together; the last ones have longer answers, so a mean of means would be another number."""
    held_out = small.rows(300, "v")
    for row in held_out[260:]:
        row["messages"] = [row["messages"][0], {"role": "assistant", "content": "none of the trees that are known"}]
    config = TrainingConfig(**ONE_STEP)
    result = train(str(base), small.rows(20), config=config, output_dir=tmp_path, validation=held_out, device="cpu")
    rows = encode_rows(held_out, ChatTokenizer(small.tokenizer()))[0]
    learner = Learner(AutoModelForCausalLM.from_pretrained(result.final_path), rows[0].ids).eval()
    with torch.no_grad():
        total, weight = learner(Tree([], rows))
        first, of_first = learner(Tree([], rows[:256]))
    assert result.validation_loss == pytest.approx(float(total / weight), rel=1e-5)
    assert result.validation_loss != pytest.approx(float(first / of_first), rel=1e-2)
