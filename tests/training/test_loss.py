"""What is learned, and that computing less of it changes nothing."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from dspyc.models import ChatTokenizer
from dspyc.training.batching import Collator, LengthBuckets
from dspyc.training.config import TrainingConfig
from dspyc.training.loss import CausalLoss
from dspyc.training.methods import with_adapter
from dspyc.training.rows import encode_rows
from dspyc.training.schedule import rate_factor
from dspyc.training.trainer import embedding_dropout

from . import small


def plain_loss(model: Any, batch: dict[str, torch.Tensor], smoothing: float) -> torch.Tensor:
    """The same loss written down from its definition, over all logits of the model."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    log_p = F.log_softmax(logits[:, :-1].float(), -1)
    hit = log_p.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    losses = -(1 - smoothing) * hit - smoothing * log_p.mean(-1)
    weights = batch["weights"][:, 1:]
    return (losses * weights).sum() / weights.sum()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "gemma2"])
@pytest.mark.parametrize(("smoothing", "prompt_weight"), [(0.0, 0.0), (0.1, 0.2)])
def test_the_loss_is_that_of_the_models_own_logits(kind: str, smoothing: float, prompt_weight: float) -> None:
    model = small.model(kind).eval()
    batch = Collator(0, prompt_weight)(small.encoded(6))
    loss = CausalLoss(model, [5, 6, 7, 8], smoothing)
    assert loss.sparse == (kind != "gemma2")  # Gemma 2 caps its logits
    total, weight = loss(batch)
    ours = torch.autograd.grad(total / weight, list(model.parameters()))
    expected = plain_loss(model, batch, smoothing)
    theirs = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(total / weight, expected, rtol=1e-6, atol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() <= 1e-5 * other.norm() + 1e-9


def test_an_adapter_keeps_the_short_way_exact() -> None:
    model = with_adapter(small.model(), TrainingConfig()).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    batch = Collator(0)(small.encoded(5))
    loss = CausalLoss(model, [5, 6, 7], 0.0)
    total, weight = loss(batch)
    assert loss.sparse
    torch.testing.assert_close(total / weight, plain_loss(model, batch, 0.0), rtol=1e-6, atol=1e-6)


def test_only_the_last_message_is_learned_even_when_demos_hold_answers() -> None:
    demo = [{"role": "user", "content": "7"}, {"role": "assistant", "content": "oak"}]
    row = {"messages": [*demo, {"role": "user", "content": "8"}, {"role": "assistant", "content": "elm"}]}
    chat = ChatTokenizer(small.tokenizer())
    (encoded,), report = encode_rows([row], chat)
    batch = Collator(0)([encoded])
    learned = batch["input_ids"][batch["weights"] > 0].tolist()
    assert small.tokenizer().decode(learned) == "elm<|im_end|>"
    assert report.supervised_tokens == 4
    logits = torch.zeros(1, len(encoded), 300, requires_grad=True)

    class Given(torch.nn.Module):
        """Gives the logits that the test watches."""

        base_model_prefix = ""

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def get_output_embeddings(self) -> None:
            return None

        def forward(self, **_: Any) -> Any:
            return type("Output", (), {"logits": logits * self.scale})()

    total, _ = CausalLoss(Given(), [1, 2], 0.0)(batch)
    total.backward()
    touched = logits.grad.abs().sum(-1)[0].nonzero()[:, 0].tolist()
    assert touched == list(range(encoded.prompt_length - 1, len(encoded) - 1))


def test_padding_changes_no_row() -> None:
    model = small.model().eval()
    loss, collate, rows = CausalLoss(model, [5, 6], 0.0), Collator(0), small.encoded(7)
    together, _ = loss(collate(rows))
    alone = sum(loss(collate([row]))[0].item() for row in rows)
    assert together.item() == pytest.approx(alone, rel=1e-6)


def test_every_row_comes_once_an_epoch_in_an_order_that_the_seed_decides() -> None:
    lengths = [10 + (i * 7) % 50 for i in range(103)]

    def epoch(seed: int, number: int) -> list[list[int]]:
        buckets = LengthBuckets(lengths, 4, 2, seed)
        buckets.set_epoch(number)
        return list(buckets)

    found = epoch(0, 0)
    assert sorted(i for batch in found for i in batch) == list(range(103))
    assert len(found) == len(LengthBuckets(lengths, 4, 2)) == 26
    assert found == epoch(0, 0)
    assert found != epoch(0, 1)
    assert found != epoch(1, 0)


def test_accumulation_divides_the_same_rows_that_one_big_batch_has() -> None:
    lengths = [10 + (i * 7) % 50 for i in range(103)]
    big = list(LengthBuckets(lengths, 16, 1))
    parts = list(LengthBuckets(lengths, 4, 4))
    steps = [[i for part in parts[start : start + 4] for i in part] for start in range(0, len(parts), 4)]
    assert [sorted(step) for step in steps] == [sorted(step) for step in big]


def test_buckets_waste_little_on_padding() -> None:
    lengths = [20 + (i * i) % 60 for i in range(2000)]
    padded = sum(len(b) * max(lengths[i] for i in b) for b in LengthBuckets(lengths, 32))
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
def test_a_rate_rises_once_to_its_peak_and_never_rises_again(kind: str, total: int, warmup: float) -> None:
    factors = [rate_factor(kind, step, total, warmup) for step in range(total)]
    assert all(0 < f <= 1 for f in factors)
    peak = factors.index(max(factors))
    assert all(a <= b for a, b in pairwise(factors[: peak + 1]))
    assert all(a >= b for a, b in pairwise(factors[peak:]))


def test_one_cycle_has_the_shape_of_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001, pct_start=0.3)
    for step in range(1000):
        expected = theirs.get_last_lr()[0]
        assert rate_factor("one_cycle", step, 1001, 0.3) == pytest.approx(expected, abs=0.01)
        optimizer.step()
        theirs.step()
