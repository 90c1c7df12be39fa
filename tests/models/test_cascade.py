"""Attention of a step: rows of several tokens attend in bunches as each would by itself."""

from types import SimpleNamespace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dspyc.models.cascade import Span, Step, attend, bunched
from dspyc.models.store import Layer, Prefix, Store

CPU = torch.device("cpu")
HEADS, SIZE = 2, 4  # of keys

spans = st.lists(st.tuples(st.integers(2, 6), st.sampled_from([0, 0, 1, 5]), st.integers(0, 3)), min_size=1, max_size=6)


def step_of(made: list[Span], store: Store) -> Step:
    none = torch.empty(0, dtype=torch.long)
    return Step(len(made), none, none, None, 0, None, [], made, store)


@given(spans, st.sampled_from([1, 3]), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_rows_of_several_tokens_attend_as_each_would_alone(
    rows: list[tuple[int, int, int]], each: int, seed: int
) -> None:
    torch.manual_seed(seed)
    prefixes = [
        Prefix(range(3), None, [Layer(torch.randn(HEADS, 3, SIZE), torch.randn(HEADS, 3, SIZE))]) for _ in range(2)
    ]
    made, offset = [], 0
    for slot, (length, start, shared) in enumerate(rows):
        prefix = prefixes[slot % 2] if shared else None
        made.append(Span(slot, offset, length, start, prefix, shared))
        offset += length
    query, key, value = (
        torch.randn(1, HEADS * each, offset, SIZE),
        torch.randn(1, HEADS, offset, SIZE),
        torch.randn(1, HEADS, offset, SIZE),
    )
    store = Store(len(rows), 12)
    own = store.layer(0, key, value)
    own.keys.copy_(torch.randn(*own.keys.shape))
    own.values.copy_(torch.randn(*own.values.shape))
    keys, values = own.keys.clone(), own.values.clone()

    found, _ = attend(SimpleNamespace(layer_idx=0), query, key, value, None, step=step_of(made, store))

    for span in made:
        here = slice(span.offset, span.offset + span.length)
        before = (
            span.prefix.layers[0] if span.prefix else Layer(torch.randn(HEADS, 0, SIZE), torch.randn(HEADS, 0, SIZE))
        )
        seen = [
            torch.cat([first[:, : span.shared], held[span.slot, :, : span.start], new[0, :, here]], 1)
            for first, held, new in ((before.keys, keys, key), (before.values, values, value))
        ]
        scores = query[0, :, here] @ seen[0].repeat_interleave(each, 0).transpose(1, 2) / SIZE**0.5
        later = torch.ones(scores.shape[1:], dtype=torch.bool).triu(span.shared + span.start + 1)
        expected = scores.masked_fill(later, -torch.inf).softmax(-1) @ seen[1].repeat_interleave(each, 0)
        torch.testing.assert_close(found[0, here], expected.transpose(0, 1), atol=1e-5, rtol=1e-5)
        assert torch.equal(own.keys[span.slot, :, span.start : span.end], key[0, :, here])
        assert torch.equal(own.values[span.slot, :, span.start : span.end], value[0, :, here])


def test_rows_are_bunched_where_it_pays() -> None:
    def sizes(lengths: list[int], prefix: Prefix | None = None, start: int = 0) -> list[int]:
        shared = len(prefix.ids) if prefix else 0
        made = [Span(at, 0, length, start, prefix, shared) for at, length in enumerate(lengths)]
        return [len(bunch.tokens) for bunch in bunched(made, CPU)]

    long = Prefix(range(600), None)
    assert sizes([20, 22, 24, 21]) == [4]
    assert sizes([20, 22, 24, 21], long) == [1, 1, 1, 1]  # copies of the prefix cost a CPU more than calls
    assert sizes([400, 20, 30]) == [1, 2]  # and so would padding to 400
    assert sizes([20, 30], start=3) == [2]
    apart = [
        Span(0, 0, 9, 0, None, 0),
        Span(1, 9, 9, 4, None, 0),
        Span(2, 18, 9, 0, long, 5),
        Span(3, 27, 9, 0, long, 6),
    ]
    assert len(bunched(apart, CPU)) == 4  # what stands before them differs in kind
