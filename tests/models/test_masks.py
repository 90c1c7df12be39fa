"""Masks of a grammar's states: which states share one, whether that one is right, and how many are held."""

import json

import dspy
import pytest
import torch
from pydantic import BaseModel, Field

import dspyc
from dspyc.models import ChatTokenizer
from dspyc.models.automaton import DEAD
from dspyc.models.constraints import CompiledGrammar, GrammarConstraint, constraint_of
from dspyc.models.masks import Masks
from dspyc.models.vocabulary import Vocabulary
from dspyc.signatures.grammar import reply_grammar
from tests.models import small, writing

WORDS = ChatTokenizer(small.tokenizer())


class Long(BaseModel):
    body: str = Field(max_length=4000)


class Short(BaseModel):
    body: str = Field(min_length=3, max_length=30)
    tags: list[str] = Field(max_length=25)
    code: str = Field(pattern="^[a-c]{2,40}(-[a-c]{1,30})?$")


def grammar(kind: type[BaseModel]) -> str:
    return reply_grammar(dspy.Signature("q -> made: made", custom_types={"made": kind}), dspyc.TerseAdapter())


def compiled(kind: type[BaseModel], most: int) -> tuple[CompiledGrammar, Masks]:
    """A grammar that holds at most so many masks."""
    masks = Masks(most)
    words = Vocabulary(WORDS.tokenizer, WORDS.text_ids)
    return CompiledGrammar(json.loads(grammar(kind)), words, WORDS.stop_ids, masks), masks


def test_a_text_far_from_its_longest_needs_one_mask() -> None:
    constraint = constraint_of(grammar(Long), WORDS, max_tokens=400)
    masks: list[torch.Tensor] = []

    def choose(ids: list[int], mask: torch.Tensor) -> int:
        masks.append(mask)
        return hello[len(masks) % len(hello)] if mask[hello].all() else int(mask.nonzero()[0])

    hello = WORDS.text_ids("Hello there, how are you today? ")
    writing.write(constraint, 400, choose)
    assert len(masks) > 350
    assert len({id(mask) for mask in masks}) < 20  # that of the text; those of its beginning, and near the end


def expected(constraint: GrammarConstraint, left: int) -> torch.Tensor:
    """What may follow, found token by token from the very state that the reply is in."""
    compiled, state = constraint._grammar, constraint._state
    mask = torch.zeros(compiled.vocabulary.size, dtype=torch.bool)
    for token, spelling in enumerate(compiled.vocabulary.spellings):
        after = compiled.automaton.run(state, spelling) if spelling else DEAD
        mask[token] = after != DEAD and len(compiled.closing(after)) < left
    if compiled.automaton.ends(state):
        mask[list(compiled.stop_ids)] = True
    return mask


@pytest.mark.parametrize("most", [2, 1000])
def test_masks_are_those_of_the_state_whatever_shares_or_replaces_them(most: int) -> None:
    grammar, masks = compiled(Short, most)
    for seed, length in enumerate((60, 90, 150, 300)):
        constraint = GrammarConstraint(grammar, length)
        draw = writing.by_chance(seed)

        def choose(ids: list[int], mask: torch.Tensor) -> int:
            assert torch.equal(mask, expected(constraint, length - len(ids)))  # noqa: B023 (called before the next)
            return draw(ids, mask)  # noqa: B023

        ids = writing.write(constraint, length, choose)
        Short.model_validate_json(WORDS.decode(ids))
    assert len(masks) <= most


def test_the_least_recently_used_mask_goes_first() -> None:
    masks = Masks(2)
    one, two, three = (torch.tensor([bool(bit)]) for bit in (0, 1, 0))
    masks.keep("one", one)
    masks.keep("two", two)
    assert masks.get("one") is one
    masks.keep("three", three)
    assert masks.get("two") is None
    assert masks.get("one") is one
    assert masks.get("three") is three
    assert len(masks) == 2
