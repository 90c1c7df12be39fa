"""Prompts that rows share are computed once, and nobody can tell from the gradients."""

import random
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from dspyc.models.longrope import short_length
from dspyc.training import attention
from dspyc.training.config import TrainingConfig
from dspyc.training.loss import Learner
from dspyc.training.methods import with_adapter
from dspyc.training.probe import why_not_shared
from dspyc.training.rows import EncodedRow
from dspyc.training.sharing import Planner, Tree

from . import small

BIG = 10**9
OTHERS = ("gemma2", "mistral")  # soft caps; a window shorter than the prompts


def tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(3, 250) for _ in range(count)]


def rows(seed: int = 0) -> list[EncodedRow]:
    """Two predictors; the first with one system message and two sets of demos behind it, the second without demos."""
    rng = random.Random(seed)
    system, other = tokens(rng, 40), tokens(rng, 30)
    demos = [tokens(rng, 25), tokens(rng, 35)]
    made = []
    for i in range(12):
        prompt = [*system, *demos[i % 2], *tokens(rng, 3 + i % 5)] if i < 9 else [*other, *tokens(rng, 6)]
        made.append(EncodedRow(prompt + tokens(rng, 2 + i % 7), len(prompt), i))
    return made


def gradients(learner: Learner, trees: list[Tree]) -> tuple[float, dict[str, torch.Tensor]]:
    learner.zero_grad()
    total = 0.0
    for tree in trees:
        total += learner.learn(tree, lambda loss: loss, nullcontext).item()
    return total, {name: p.grad.clone() for name, p in learner.named_parameters() if p.grad is not None}


KINDS = ["llama", "qwen3", "gpt2", "gemma", "gemma2", "phi", "mistral", "granite", "qwen3_moe"]
HOW = [(kind, how) for kind in KINDS for how in ("eager", "sdpa", "in place")]
IMPOSSIBLE = [("gemma2", "sdpa"), *((kind, "in place") for kind in OTHERS)]


@pytest.mark.parametrize(("kind", "how"), [pair for pair in HOW if pair not in IMPOSSIBLE])
@pytest.mark.parametrize("budget", [BIG, 15])
def test_gradients_are_those_of_whole_rows(kind: str, how: str, budget: int) -> None:
    model = small.model(kind)
    model.set_attn_implementation("sdpa" if how == "sdpa" else "eager")
    learner = Learner(model, [5, 6, 7]).eval()
    trees = Planner(budget, worth=4)(rows())
    # Demos behind a system message are a tree of trees; in batches where they are above the budget.
    assert any(branch.ids for tree in trees for branch in tree.branches)
    many = sum(len(batches(tree)) for tree in trees)
    assert many == 5 if budget == BIG else many > 5
    expected, plain = gradients(learner, Planner(BIG, share=False)(rows()))
    learner.attend_in_place(how == "in place")
    found, shared = gradients(learner, trees)
    assert found == pytest.approx(expected, rel=1e-5)
    for name, gradient in plain.items():
        assert (shared[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_the_plain_forward_pass_has_the_same_gradients() -> None:
    learner = Learner(small.model(), [5, 6, 7])
    _, learned = gradients(learner, Planner(BIG, worth=4)(rows()))
    learner.zero_grad()
    torch.stack([learner(tree)[0] for tree in Planner(BIG, worth=4)(rows())]).sum().backward()
    for name, parameter in learner.named_parameters():
        assert (parameter.grad - learned[name]).norm() <= 1e-5 * learned[name].norm(), name


def test_rows_beyond_the_short_factors_of_longrope_are_computed_apart() -> None:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "rope_theta": 10_000.0}
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 80, **factors}
    model = small.model("phi3", rope_parameters=rope, original_max_position_embeddings=80, initializer_range=0.3)
    lengths = [len(row) for row in rows()]
    assert min(lengths) < 80 < max(lengths)
    short = short_length(model.config)
    learner = Learner(model, [5, 6, 7])
    expected, alone = gradients(learner, Planner(1, share=False)(rows()))
    together, _ = gradients(learner, Planner(BIG, share=False)(rows()))
    assert together != pytest.approx(expected, rel=1e-3)
    for planner in (Planner(BIG, share=False, short=short), Planner(BIG, worth=4, short=short)):
        loss, found = gradients(learner, planner(rows()))
        assert loss == pytest.approx(expected, rel=1e-6)
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


def test_an_adapters_gradients_are_those_of_whole_rows() -> None:
    model = with_adapter(small.model(), TrainingConfig(lora_dropout=0.0))
    learner = Learner(model, [5, 6, 7])
    _, plain = gradients(learner, Planner(BIG, share=False)(rows()))
    _, shared = gradients(learner, Planner(BIG, worth=4)(rows()))
    assert plain.keys() == shared.keys() == {n for n, p in learner.named_parameters() if p.requires_grad}
    for name, gradient in plain.items():
        assert (shared[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-9, name


def paths(tree: Tree, before: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], EncodedRow]]:
    """(the shared ids in front of a row, the row) for every row of a tree."""
    assert tree.depth == len(before)
    here = (*before, *tree.ids)
    return [(here, row) for row in tree.rows] + [found for branch in tree.branches for found in paths(branch, here)]


def batches(tree: Tree) -> list[Tree]:
    return ([tree] if tree.rows else []) + [found for branch in tree.branches for found in batches(branch)]


@st.composite
def _some_rows(draw: Any) -> list[EncodedRow]:
    """Rows over an alphabet of two, so that they share a lot, with replies of at least one token."""
    count = draw(st.integers(1, 12))
    made = []
    for index in range(count):
        prompt = draw(st.lists(st.integers(0, 1), min_size=0, max_size=12))
        reply = draw(st.lists(st.integers(0, 1), min_size=1, max_size=6))
        made.append(EncodedRow(prompt + reply, len(prompt), index))
    return made


@given(_some_rows(), st.integers(0, 20), st.integers(1, 100), st.booleans())
def test_a_plan_holds_every_row_once_and_never_shares_a_learned_position(
    some: list[EncodedRow], worth: int, budget: int, share: bool
) -> None:
    trees = Planner(budget, share=share, worth=worth)(some)
    found = [pair for tree in trees for pair in paths(tree)]
    assert Counter(row.index for _, row in found) == Counter(row.index for row in some)
    for before, row in found:
        assert tuple(row.ids[: len(before)]) == before
        assert len(before) <= max(0, row.prompt_length - 1)
        assert share or not before
    for tree in trees:
        for batch in batches(tree):
            width = max(len(row) for row in batch.rows) - batch.end
            assert len(batch.rows) * width <= budget or len(batch.rows) == 1


@given(_some_rows(), st.integers(0, 20))
def test_sharing_never_computes_more_than_whole_rows_and_what_a_call_is_worth(
    some: list[EncodedRow], worth: int
) -> None:
    shared = sum(tree.tokens for tree in Planner(BIG, worth=worth)(some))
    assert shared <= sum(tree.tokens for tree in Planner(BIG, share=False, worth=BIG)(some))


def test_a_prompt_that_saves_less_than_a_call_is_not_shared() -> None:
    rng = random.Random(0)
    system = tokens(rng, 20)
    some = [EncodedRow([*system, *tokens(rng, 5)], 22, i) for i in range(4)]  # three times 20 tokens can be saved
    assert [len(tree.ids) for tree in Planner(BIG, worth=59)(some)] == [20]
    assert [len(tree.ids) for tree in Planner(BIG, worth=60)(some)] == [0]


@pytest.mark.parametrize(("copied", "most"), [(False, 40), (True, 10)])
def test_copies_of_a_prompt_count_against_the_budget(copied: bool, most: int) -> None:
    rng = random.Random(0)
    system = tokens(rng, 120)
    some = [EncodedRow([*system, *tokens(rng, 10)], 122, i) for i in range(40)]
    (tree,) = Planner(400, copied=copied)(some)
    assert [len(batch.rows) for batch in batches(tree) if batch.rows] == [most] * (40 // most)
    assert Planner(400, copied=copied).largest([tree]) == 400
    whole = Planner(400, share=False, copied=copied)(some)
    assert {len(batch.rows) for batch in whole} == {len(b.rows) for b in Planner(400, share=False)(some)}


def test_the_first_rows_show_that_sharing_is_exact() -> None:
    assert why_not_shared(Learner(small.model(), [5, 6, 7]), rows(), Planner(BIG, worth=4)) is None


@pytest.mark.parametrize("kind", ["llama", "gpt2", *OTHERS])
def test_the_first_rows_show_which_attention_is_exact(kind: str) -> None:
    learner = Learner(small.model(kind), [5, 6, 7])
    assert why_not_shared(learner, rows(), Planner(BIG, worth=4)) is None
    assert learner.in_place == (kind not in OTHERS)


class Eighths(torch.nn.Module):
    """A frozen linear layer of 8-bit weights, multiplied in bfloat16, as bitsandbytes' layers are on a GPU."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.scale = float(linear.weight.detach().abs().max()) / 127
        whole = (linear.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(whole, requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        weight = self.weight.to(torch.bfloat16) * self.scale
        return (states.to(torch.bfloat16) @ weight.t()).to(states.dtype)


def test_a_quantised_base_has_the_tolerance_of_what_it_is_multiplied_in() -> None:
    model = small.model(hidden_size=256, intermediate_size=512, head_dim=128)
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(part, name, Eighths(linear))
    learner = Learner(model, [5, 6, 7])
    samples = [rows()[:2]]
    plain, shared = (
        gradients(learner, planner(samples[0])) for planner in (Planner(1, share=False), Planner(BIG, worth=0))
    )
    norm = sum(float(g.square().sum()) for g in plain[1].values()) ** 0.5
    off = sum(float((shared[1][name] - g).square().sum()) for name, g in plain[1].items()) ** 0.5
    assert off > 1e-3 * norm  # more than float32 is allowed
    assert why_not_shared(learner, rows(), Planner(BIG, worth=4)) is None


@pytest.mark.parametrize("scores", [1 << 20, 500, 30])
@pytest.mark.parametrize("shape", [(3, 4, 2, 7, 11), (3, 4, 4, 7, 0), (2, 6, 1, 5, 3)])
def test_attention_in_parts_is_attention(shape: tuple[int, ...], scores: int) -> None:
    """Of (rows, heads, heads of keys, time, tokens before them)."""
    batch, heads, shared, time, before = shape
    torch.manual_seed(0)
    sizes = [(batch, heads, time), (batch, shared, time), (batch, shared, time)] + [(1, shared, before)] * (
        2 * bool(before)
    )
    given = [torch.randn(*size, 8, dtype=torch.float64, requires_grad=True) for size in sizes]
    query, *pairs = given
    keys, values = (
        torch.cat([p.expand(batch, -1, -1, -1) for p in (*pairs[i + 2 : i + 3], pairs[i])], 2) for i in (0, 1)
    )
    keys, values = (t.repeat_interleave(heads // shared, 1) for t in (keys, values))
    seen = torch.ones(time, before + time, dtype=torch.bool).tril(before)
    expected = scaled_dot_product_attention(query, keys, values, attn_mask=seen, scale=0.3)
    found = attention.Attention.apply(0.3, scores, *given)
    torch.testing.assert_close(found, expected)
    above = torch.randn_like(expected)
    for mine, theirs in zip(*(torch.autograd.grad(out, given, above) for out in (found, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_model_without_keys_and_values_is_found_on_the_first_rows() -> None:
    why = why_not_shared(Learner(small.model("mamba"), [5, 6, 7]), rows(), Planner(BIG, worth=4))
    assert why is not None
    assert "differ" in why or "does not take" in why


def test_a_model_that_answers_differently_behind_a_cache_is_found_on_the_first_rows() -> None:
    """Its positions start anew behind a cached prompt: the loss is finite, and wrong."""
    model = small.model()

    def forget(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"position_ids": torch.arange(kwargs["input_ids"].shape[1])[None]}

    model.model.register_forward_pre_hook(forget, with_kwargs=True)
    why = why_not_shared(Learner(model, [5, 6, 7]), rows(), Planner(BIG, worth=4))
    assert why is not None
    assert "differ by" in why


def some(kind: str, count: int, prompt: int, length: int = 5) -> list[EncodedRow]:
    """Rows behind a prompt of their own kind, with so many tokens after it."""
    rng = random.Random(kind)
    start = tokens(rng, prompt)
    made = []
    for i in range(count):
        own = [*start, *tokens(rng, length)]
        made.append(EncodedRow(own + tokens(rng, 3), len(own), i))
    return made


def test_rows_that_come_first_and_share_nothing_prove_nothing() -> None:
    given = some("a", 16, 0) + some("b", 16, 150)
    why = why_not_shared(Learner(small.model("mamba"), [5, 6, 7]), given, Planner(BIG))
    assert why is not None
    assert "differ by" in why


@pytest.mark.parametrize("long", [some("b", 16, 150), some("c", 1, 0, 150), some("a", 1, 40, 150)])
def test_a_window_is_tried_on_the_longest_rows(long: list[EncodedRow]) -> None:
    """Prompts that are shared, rows that share nothing, and a long row behind a short prompt, all beyond the window."""
    learner = Learner(small.model("mistral", sliding_window=100), [5, 6, 7])
    assert why_not_shared(learner, some("a", 16, 40), Planner(BIG)) is None
    assert learner.in_place
    assert why_not_shared(learner, some("a", 16, 40) + long, Planner(BIG)) is None
    assert not learner.in_place


def test_attention_that_drops_is_the_models_own() -> None:
    learner = Learner(small.model("gpt2", attn_pdrop=0.1), [5, 6, 7]).train()
    torch.manual_seed(3)
    assert why_not_shared(learner, rows(), Planner(BIG, worth=4)) is None
    assert not learner.in_place
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), drawn)  # the comparison draws nothing of the run's


def test_the_comparison_leaves_no_gradient_and_no_mode_behind() -> None:
    learner = Learner(small.model(), [5, 6, 7]).train()
    why_not_shared(learner, rows(), Planner(BIG, worth=4))
    assert learner.training
    assert all(p.grad is None for p in learner.parameters())
