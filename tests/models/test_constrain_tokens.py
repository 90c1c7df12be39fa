"""Constraints token by token: what is forced, what may follow, and how a reply ends."""

import gc
import weakref

import dspy
import pytest
import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

import dspyc
from dspyc.errors import ModelError
from dspyc.models import ChatTokenizer
from dspyc.models.constraints import Constraint, constraint_of
from dspyc.models.vocabulary import Vocabulary
from dspyc.signatures.grammar import reply_grammar
from tests.models import small, writing

CHAT, JSON, TERSE = dspy.ChatAdapter(), dspy.JSONAdapter(), dspyc.TerseAdapter()
WORDS = ChatTokenizer(small.tokenizer())


def constrain(signature, adapter, max_tokens: int = 500, chat: ChatTokenizer = WORDS) -> Constraint:
    kind = dspy.Signature(signature) if isinstance(signature, str) else signature
    return constraint_of(reply_grammar(kind, adapter), chat, max_tokens=max_tokens)


def allowed(constraint: Constraint, text: str) -> bool:
    mask = constraint.allowed()
    return bool(mask[WORDS.text_ids(text)[0]])


def say(constraint: Constraint, text: str) -> None:
    for token in WORDS.text_ids(text):
        constraint.accept(token)


def test_what_the_format_fixes_comes_in_one_step():
    constraint = constrain("q -> label: Literal['yes', 'no']", CHAT)
    assert WORDS.decode(constraint.forced()) == "[[ ## label ## ]]\n"
    assert not constraint.finished
    assert constraint.forced() == []
    assert allowed(constraint, "yes")
    assert not allowed(constraint, "tool")
    constraint.accept(WORDS.text_ids("n")[0])
    assert WORDS.decode(constraint.forced()) == "o\n\n[[ ## completed ## ]]\n"
    assert constraint.finished


def test_an_option_that_another_begins_with_is_the_models_choice():
    constraint = constrain("q -> label: Literal['card', 'card payment']", CHAT)
    constraint.forced()
    say(constraint, "card")
    assert constraint.forced() == []
    assert allowed(constraint, " ")
    assert allowed(constraint, "\n")
    assert constraint.allowed()[WORDS.end_of_turn_id]
    constraint.accept(WORDS.end_of_turn_id)
    assert constraint.finished


def test_control_tokens_and_ids_that_spell_nothing_never_follow():
    signature, size = reply_grammar(dspy.Signature("q -> text"), TERSE), len(WORDS.tokenizer) + 7
    constraint = constraint_of(signature, ChatTokenizer(small.tokenizer()), max_tokens=9, size=size)
    mask = constraint.allowed()
    assert mask.shape == (size,)
    assert not mask[len(WORDS.tokenizer) :].any()
    assert not mask[WORDS.tokenizer.all_special_ids].any()
    say(constraint, "a")
    assert [i for i in WORDS.tokenizer.all_special_ids if constraint.allowed()[i]] == [WORDS.end_of_turn_id]


def test_masks_are_kept_for_the_states_of_a_grammar():
    one, other = constrain("q -> text", TERSE), constrain("q -> text", TERSE)
    say(one, "hello")
    say(other, "there")
    assert one.allowed() is other.allowed()


def test_a_token_that_is_not_allowed_is_an_error():
    constraint = constrain("q -> n: int", TERSE)
    with pytest.raises(ModelError, match="allows"):
        constraint.accept(WORDS.text_ids("H")[0])


@pytest.mark.parametrize("adapter", [CHAT, JSON, TERSE], ids=lambda adapter: type(adapter).__name__)
def test_a_reply_that_cannot_fit_names_its_field(adapter):
    signature = "q -> first: int, second: list[str], third: bool"
    with pytest.raises(ModelError, match=r"field `first` .* max_tokens=1\b") as caught:
        constrain(signature, adapter, 1)
    least = int(caught.value.hint.split("max_tokens to ")[1].split()[0])
    with pytest.raises(ModelError, match="field `third`"):
        constrain(signature, adapter, least - 1)
    ids = writing.write(constrain(signature, adapter, least), least, writing.by_chance(0))
    assert len(ids) <= least
    adapter.parse(dspy.Signature(signature), WORDS.decode(ids))


def test_near_the_end_only_what_leaves_room_may_follow():
    constraint = constrain("q -> items: list[str], last: bool", TERSE, 14)
    say(constraint, '["ab')
    opened = constraint.closing(14 - 4)
    assert opened is None
    assert allowed(constraint, "c")
    say(constraint, "cdef")
    left = 14 - 8
    while (closing := constraint.closing(left)) is None and not constraint.finished:
        mask = constraint.allowed().clone()
        constraint.accept(int(mask.nonzero()[-1]))
        left -= 1
        left -= len(constraint.forced())
    assert left >= len(closing or [])


def test_the_model_decides_between_ends_that_are_equally_near():
    constraint = constrain("q -> sure: Literal['y', 'n']", TERSE, 1)
    assert constraint.closing(1) is None
    assert sorted(WORDS.decode([i]) for i in constraint.allowed().nonzero().flatten().tolist()) == ["n", "y"]


def pieces(*, prepends: bool) -> ChatTokenizer:
    """A tokenizer of pieces with byte fallback, as SentencePiece makes them."""
    vocabulary = {"<unk>": 0, "<|im_start|>": 1, "<|im_end|>": 2} | {f"<0x{byte:02X}>": 3 + byte for byte in range(256)}
    for letter in '\u2581abcdefghijklmnopqrstuvwxyz0123456789[]#{}":,.\n':
        vocabulary.setdefault(letter, len(vocabulary))
    merges = [
        ("[", "["),
        ("\u2581", "[["),
        ("#", "#"),
        ("\u2581", "##"),
        ("r", "e"),
        ("\u2581", "re"),
        ("f", "u"),
        ("n", "d"),
    ]
    merges += [("fu", "nd"), ("re", "fund"), ("\u2581re", "fund")]
    vocabulary |= {left + right: len(vocabulary) + at for at, (left, right) in enumerate(merges)}
    made = Tokenizer(tokenizer_models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if prepends:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    strip = [decoders.Strip(" ", 1, 0)] if prepends else []
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    made.decoder = decoders.Sequence(steps)
    special = {"eos_token": "<|im_end|>", "unk_token": "<unk>", "additional_special_tokens": ["<|im_start|>"]}
    return ChatTokenizer(PreTrainedTokenizerFast(tokenizer_object=made, chat_template=small.CHATML, **special))


@pytest.mark.parametrize("adapter", [CHAT, JSON, TERSE], ids=lambda adapter: type(adapter).__name__)
@pytest.mark.parametrize("prepends", [True, False])
def test_tokenizers_of_pieces(adapter, prepends):
    chat = pieces(prepends=prepends)
    signature = dspy.Signature("q -> text: str, label: Literal['refund', 'card'], n: int, tags: list[str]")
    for seed in range(5):
        ids = writing.write(constrain(signature, adapter, 200, chat), 200, writing.by_chance(seed))
        assert adapter.parse(signature, chat.decode(ids))["label"] in ("refund", "card")
    values = {"text": "re fund é", "label": "refund", "n": 3, "tags": ["a", "re"]}
    answer = adapter.format_assistant_message_content(signature, values)
    row, start = chat.row_ids([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}])
    student = taught(chat, row[start:])
    ids = writing.write(constrain(signature, adapter, 10_000, chat), 10_000, student)
    assert adapter.parse(signature, chat.decode(ids)) == values


def taught(chat: ChatTokenizer, row: list[int]) -> writing.Choose:
    def choose(ids: list[int], mask: torch.Tensor) -> int:
        assert ids == row[: len(ids)]
        assert mask[row[len(ids)]]
        return row[len(ids)]

    return choose


def test_a_thought_that_the_template_opens_is_free_and_ends_in_time():
    chat = ChatTokenizer(small.tokenizer(small.THINKING))
    assert chat.opening.text == "<think>\n\n</think>\n\n"
    signature = "q -> n: int"
    free = writing.write(constrain(signature, CHAT, 120, chat), 120, writing.by_chance(1))
    thought, answer = chat.decode(free).split("</think>\n\n")
    assert thought.startswith("<think>\n")
    assert isinstance(CHAT.parse(dspy.Signature(signature), answer)["n"], int)
    reply = {"role": "assistant", "content": "[[ ## n ## ]]\n7\n\n[[ ## completed ## ]]\n"}
    row, start = chat.row_ids([{"role": "user", "content": "?"}, reply])
    ids = writing.write(constrain(signature, CHAT, 500, chat), 500, taught(chat, row[start:]))
    assert chat.decode(ids) == "<think>\n\n</think>\n\n" + reply["content"]
    assert chat.opening.without(chat.decode(ids)) == reply["content"]
    assert chat.opening.without(chat.decode(free)) == answer
    assert chat.opening.without("no thought") == "no thought"


def test_a_field_called_thought_keeps_its_own_rules_beside_a_thought():
    chat = ChatTokenizer(small.tokenizer(small.THINKING))
    signature = "q -> thought: str, n: int"
    reply = CHAT.format_assistant_message_content(dspy.Signature(signature), {"thought": "a\nb", "n": 7})
    row, start = chat.row_ids([{"role": "user", "content": "?"}, {"role": "assistant", "content": reply}])
    ids = writing.write(constrain(signature, CHAT, 900, chat), 900, taught(chat, row[start:]))
    assert CHAT.parse(dspy.Signature(signature), chat.opening.without(chat.decode(ids))) == {"thought": "a\nb", "n": 7}


def test_a_tokenizer_without_bytes_is_refused_by_name():
    made = Tokenizer(tokenizer_models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    words = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", eos_token="a")
    with pytest.raises(ModelError, match="cannot be told as bytes"):
        Vocabulary(words, lambda text: [])


def test_compiled_grammars_do_not_keep_a_tokenizer_alive():
    chat = ChatTokenizer(small.tokenizer())
    constrain("q -> n: int", CHAT, chat=chat)
    gone = weakref.ref(chat)
    del chat
    gc.collect()
    assert gone() is None
