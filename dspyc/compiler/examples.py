"""The examples that a compile is given: checked, and known by keys that are the same in every process."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import dspy

from ..errors import DataError
from ..signatures import fingerprint
from ..signatures.fingerprints import stable


def check_examples(examples: Any, name: str, *, allow_empty: bool = False, inputs: bool = True) -> list[dspy.Example]:
    """The examples as a list, each with its inputs named unless `inputs=False`.

    Raises:
        DataError: Nothing, or something other than examples with inputs, arrived.
    """
    if isinstance(examples, (str, bytes)) or not hasattr(examples, "__iter__"):
        raise DataError(f"`{name}` is a {type(examples).__name__}; a list of dspy.Example is allowed.")
    checked: list[dspy.Example] = list(examples)
    if not checked and not allow_empty:
        raise DataError(f"`{name}` is empty.", hint="Pass at least one dspy.Example(...).with_inputs(...).")
    for i, example in enumerate(checked):
        if not isinstance(example, dspy.Example):
            raise DataError(
                f"`{name}[{i}]` is a {type(example).__name__}; a dspy.Example is allowed.",
                hint="Write dspy.Example(**row).with_inputs('question').",
            )
        try:
            empty = inputs and not example.inputs().keys()
        except ValueError:
            empty = True
        if empty:
            raise DataError(
                f"`{name}[{i}]` does not say which of its fields {sorted(example.keys())} are inputs.",
                hint="Call .with_inputs('question', ...) on every example.",
            )
    return checked


def example_keys(examples: Sequence[dspy.Example]) -> list[str]:
    """One stable key an example, by content; repeats of an example are numbered, so each has its own run."""
    return numbered(contents_of(examples))


def contents_of(examples: Iterable[dspy.Example]) -> list[str]:
    """What each example is known by, whatever its place: the part of its key that equal ones share."""
    return [fingerprint([sorted((k, stable(v)) for k, v in e.items()), sorted(e.inputs().keys())]) for e in examples]


def numbered(contents: Iterable[str]) -> list[str]:
    """The `example_keys` of examples with these contents."""
    seen: Counter[str] = Counter()
    keys = []
    for content in contents:
        keys.append(f"{content}#{seen[content]}")
        seen[content] += 1
    return keys


def others_than(examples: Sequence[dspy.Example], known: Sequence[dspy.Example]) -> list[dspy.Example]:
    """Those of `examples` whose content none of the `known` ones has."""
    if not examples or not known:
        return list(examples)
    contents = set(contents_of(known))
    return [e for e, content in zip(examples, contents_of(examples), strict=True) if content not in contents]


def parts_of(key: str) -> tuple[str, str]:
    """What one of `example_keys` says: the example's content, and its number among equal ones."""
    content, _, repeat = key.partition("#")
    return content, repeat


def content_of(key: str) -> str:
    """The part of one of `example_keys` that equal examples share."""
    return parts_of(key)[0]
