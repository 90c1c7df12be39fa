"""What is learned, and that computing less of it changes nothing."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from dspyc.models import ChatTokenizer
from dspyc.training.batching import Steps, rectangle, weight_of
from dspyc.training.config import TrainingConfig
from dspyc.training.loss import Learner
from dspyc.training.methods import embedding_dropout, with_adapter
from dspyc.training.projection import positions
from dspyc.training.rows import EncodedRow, encode_rows
from dspyc.training.schedule import rate_factor
from dspyc.training.sharing import Tree

from . import small

CPU = torch.device("cpu")


def plain_loss(model: Any, rows: list[EncodedRow], smoothing: float = 0.0, prompt_weight: float = 0.0) -> torch.Tensor:
    """The same loss written down from its definition, over all logits of the model, one row at a time."""
    total, weight = torch.zeros(()), 0.0
    for row in rows:
        log_p = F.log_softmax(model(input_ids=torch.tensor([row.ids])).logits[0, :-1].float(), -1)
        for place in range(1, len(row)):
            own = 1.0 if place >= row.prompt_length else prompt_weight
            hit = log_p[place - 1, row.ids[place]]
            total = total - own * ((1 - smoothing) * hit + smoothing * log_p[place - 1].mean())
            weight += own
    return total / weight


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma", "gemma2", "phi"])
@pytest.mark.parametrize(("smoothing", "prompt_weight"), [(0.0, 0.0), (0.1, 0.2)])
def test_the_loss_is_that_of_the_models_own_logits(kind: str, smoothing: float, prompt_weight: float) -> None:
    model, rows = small.model(kind), small.encoded(6)
    learner = Learner(model, [5, 6, 7, 8], label_smoothing=smoothing, prompt_weight=prompt_weight).train()
    assert learner.sparse
    total, weight = learner(Tree([], rows))
    assert weight.item() == pytest.approx(sum(weight_of(row, prompt_weight) for row in rows))
    ours = torch.autograd.grad(total / weight, list(model.parameters()))
    expected = plain_loss(model, rows, smoothing, prompt_weight)
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(total / weight, expected, rtol=1e-6, atol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm() + 1e-9


def test_a_model_that_changes_its_logits_takes_the_long_way() -> None:
    model, rows = small.model("granite", logits_scaling=3.0), small.encoded(6)
    learner = Learner(model, [5, 6, 7, 8])
    assert not learner.sparse
    total, weight = learner(Tree([], rows))
    torch.testing.assert_close(total / weight, plain_loss(model, rows), rtol=1e-6, atol=1e-6)


def test_validation_knows_no_smoothing_and_no_prompt() -> None:
    model, rows = small.model().eval(), small.encoded(6)
    learner = Learner(model, [5, 6], label_smoothing=0.1, prompt_weight=0.2).eval()
    total, weight = learner(Tree([], rows))
    torch.testing.assert_close(total / weight, plain_loss(model, rows), rtol=1e-6, atol=1e-6)


def test_an_adapter_keeps_the_short_way_exact() -> None:
    model = with_adapter(small.model(), TrainingConfig()).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    rows = small.encoded(5)
    learner = Learner(model, [5, 6, 7])
    total, weight = learner(Tree([], rows))
    assert learner.sparse
    torch.testing.assert_close(total / weight, plain_loss(model, rows), rtol=1e-6, atol=1e-6)


def test_chunks_of_a_large_vocabulary_change_nothing() -> None:
    """More learned positions than one chunk of logits holds."""
    model = small.model(vocab_size=300_000, hidden_size=16, head_dim=8)
    rows = [EncodedRow([i, *range(3, 20), i], 5) for i in range(3, 6)]
    learner = Learner(model, [5, 6])
    assert sum(len(row) - 5 for row in rows) > positions(300_000, 16, learner.device)
    total, weight = learner(Tree([], rows))
    ours = torch.autograd.grad(total / weight, list(model.parameters()))
    expected = plain_loss(model, rows)
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(total / weight, expected, rtol=1e-6, atol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm() + 1e-9


def test_only_the_last_message_is_learned_even_when_demos_hold_answers() -> None:
    demo = [{"role": "user", "content": "7"}, {"role": "assistant", "content": "oak"}]
    row = {"messages": [*demo, {"role": "user", "content": "8"}, {"role": "assistant", "content": "elm"}]}
    chat = ChatTokenizer(small.tokenizer())
    (encoded,), report = encode_rows([row], chat)
    ids, weights = rectangle([encoded], 0, 0, 0.0, CPU)
    assert small.tokenizer().decode(ids[weights > 0].tolist()) == "elm<|im_end|>"
    assert report.supervised_tokens == 4
    model = small.model()
    seen: list[torch.Tensor] = []
    learner = Learner(model, [1, 2])
    model.model.norm.register_forward_hook(lambda _, __, out: out.retain_grad() or seen.append(out))
    learner(Tree([], [encoded]))[0].backward()
    touched = seen[-1].grad.abs().sum(-1)[0].nonzero()[:, 0].tolist()
    assert touched == list(range(encoded.prompt_length - 1, len(encoded) - 1))


def test_padding_changes_no_row() -> None:
    learner, rows = Learner(small.model().eval(), [5, 6]), small.encoded(7)
    together, _ = learner(Tree([], rows))
    alone = sum(learner(Tree([], [row]))[0].item() for row in rows)
    assert together.item() == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("size", [{"rows": 8}, {"tokens": 300}])
def test_every_row_comes_once_an_epoch_in_an_order_that_the_seed_decides(size: dict[str, int]) -> None:
    lengths = [10 + (i * 7) % 50 for i in range(103)]

    def epoch(seed: int, number: int) -> list[list[int]]:
        steps = Steps(lengths, **size, seed=seed)
        steps.set_epoch(number)
        return list(steps)

    found = epoch(0, 0)
    assert sorted(i for step in found for i in step) == list(range(103))
    assert all(found)
    assert {len(epoch(0, number)) for number in range(20)} == {len(Steps(lengths, **size))}
    assert found == epoch(0, 0)
    assert found != epoch(0, 1)
    assert found != epoch(1, 0)


def test_a_token_budget_fills_steps_evenly() -> None:
    lengths = [10 + (i * 37) % 90 for i in range(500)]
    tokens = [sum(lengths[i] for i in step) for step in Steps(lengths, tokens=1000)]
    assert len(tokens) == -(-sum(lengths) // 1000)
    assert max(tokens) < 1000 + 100
    assert min(tokens) > 1000 - 200


def test_rows_of_a_step_are_alike_in_length() -> None:
    lengths = [20 + (i * i) % 60 for i in range(2000)]
    padded = sum(len(step) * max(lengths[i] for i in step) for step in Steps(lengths, rows=32))
    assert 1 - sum(lengths) / padded < 0.05


def test_embedding_dropout_acts_in_training_only() -> None:
    model = small.model()
    ids = torch.tensor([[5, 6, 7]])
    before = model.eval()(ids).logits
    with embedding_dropout(model, 0.5):
        assert torch.equal(model.eval()(ids).logits, before)
        assert not torch.equal(model.train()(ids).logits, before)
    assert torch.equal(model.train()(ids).logits, before)


@pytest.mark.parametrize("total", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.3, 0.99])
@pytest.mark.parametrize("kind", ["linear", "cosine", "constant", "one_cycle"])
def test_a_rate_rises_once_to_its_peak_and_never_rises_again(kind: Any, total: int, warmup: float) -> None:
    config = TrainingConfig(scheduler=kind, warmup_ratio=warmup)
    rising = config.warmup_steps_of(total)
    factors = [rate_factor(kind, step, total, rising) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert all(a <= b for a, b in pairwise(factors[: peak + 1]))
    assert all(a >= b for a, b in pairwise(factors[peak:]))


def test_one_cycle_has_the_shape_of_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001, pct_start=0.3)
    for step in range(1000):
        expected = theirs.get_last_lr()[0]
        assert rate_factor("one_cycle", step, 1001, 301) == pytest.approx(expected, abs=0.01)
        optimizer.step()
        theirs.step()
