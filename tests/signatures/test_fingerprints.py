"""Fingerprints: the same in every process, different for whatever matters, free of secrets."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import dspy
import numpy
import pydantic
import pytest

from dspyc.signatures import (
    TerseAdapter,
    adapt,
    adapter_fingerprint,
    copy_program,
    fingerprint,
    program_fingerprint,
    signature_fingerprint,
)
from dspyc.signatures.fingerprints import stable

from .programs import Item, Mood, Sort, build

PRINT = """
import dspy
from dspyc.signatures import *
from tests.signatures.programs import *
print(program_fingerprint(build()), signature_fingerprint(Sort), adapter_fingerprint(dspy.ChatAdapter()))
"""


def test_they_are_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "sk-canary-1")
    here = (program_fingerprint(build()), signature_fingerprint(Sort), adapter_fingerprint(dspy.ChatAdapter()))
    there = subprocess.run(
        [sys.executable, "-c", PRINT],
        env={**os.environ, "PYTHONHASHSEED": "2", "CANARY": "sk-canary-2"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert there.split() == [*here]  # the secrets differed, too
    assert all(re.fullmatch("[0-9a-f]{16}", found) for found in here)
    assert program_fingerprint(build()) == program_fingerprint(build()) == program_fingerprint(copy_program(build()))


def test_the_order_of_keys_makes_no_difference_and_the_rest_does() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    values = [{"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, {"a": [1]}, [], {}, "", None]
    assert len({fingerprint(value) for value in values}) == len(values)
    with pytest.raises(TypeError):
        fingerprint({1, 2})


def signature(**changes: Any) -> Any:
    told = {"desc": "d", "kind": str, "instructions": "Do.", "default": None} | changes
    extra = {} if told["default"] is None else {"default": told["default"]}
    fields = {
        "x": (told["kind"], dspy.InputField(desc=told["desc"], **extra)),
        "y": (str, dspy.OutputField()),
    }
    return dspy.Signature(fields, told["instructions"])


def model(kind: Any) -> Any:
    return pydantic.create_model("Thing", part=(kind, ...))


def test_every_part_of_a_signature_counts() -> None:
    kinds = [
        int, str | None, list[str], dict[str, int], tuple[int, ...], Literal["a", "b"], Literal["b", "a"], Literal[1],
        Literal["1"], Literal[True], Mood, Item, model(int), model(str), model(Mood), dspy.Image, dspy.Code["java"], list[Item],
    ]  # fmt: skip
    different = [
        signature(),
        signature(desc="other"),
        signature(instructions="Do it."),
        signature(default="v"),
        dspy.Signature("y -> x", "Do."),
        dspy.Signature("x, z -> y", "Do."),
        dspy.Signature("z, x -> y", "Do."),
        *(signature(kind=kind) for kind in kinds),
    ]
    assert len({signature_fingerprint(s) for s in different}) == len(different)


def test_what_dspy_forgets_on_loading_does_not_count() -> None:
    loaded = Sort.load_state(Sort.dump_state())
    assert loaded.__name__ != Sort.__name__
    assert signature_fingerprint(loaded) == signature_fingerprint(Sort)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "instructions": lambda p: setattr(p.first, "signature", p.first.signature.with_instructions("New.")),
    "demos": lambda p: p.first.demos.append({"q": "x"}),
    "a set in a demo": lambda p: p.first.demos[0]["labels"].remove("a"),
    "a field of a demo": lambda p: setattr(p.first.demos[0].item, "name", "m"),
    "config": lambda p: setattr(p.first, "config", {"stop": ["y"]}),
    "model": lambda p: setattr(p.first, "lm", p.first.lm.copy(model="test/other")),
    "generation": lambda p: setattr(p.first, "lm", p.first.lm.copy(temperature=0.7)),
    "adapter": lambda p: adapt(p.first, dspy.JSONAdapter()),
    "adapter's setting": lambda p: adapt(p.first, dspy.ChatAdapter(use_json_adapter_fallback=False)),
    "predictor": lambda p: setattr(p, "more", dspy.Predict("q -> z")),
    "setting": lambda p: setattr(p, "rounds", 4),
    "inner module": lambda p: setattr(p, "frozen", dspy.ReActV2("q -> e", [])),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_part_of_a_program_counts(change: Callable[[Any], Any]) -> None:
    program = build()
    before = program_fingerprint(program)
    change(program)
    assert program_fingerprint(program) != before


def test_the_global_lm_and_adapter_count_where_nothing_else_is_set() -> None:
    program = dspy.Predict("q -> a")
    found = set()
    for settings in ({}, {"lm": dspy.LM("a/b")}, {"lm": dspy.LM("a/c")}, {"adapter": dspy.XMLAdapter()}):
        with dspy.context(**settings):
            found.add(program_fingerprint(program))
    assert len(found) == 4


def test_runs_do_not_count() -> None:
    program = build()
    before = program_fingerprint(program)
    program.history.append({"x": 1})
    program.first.traces.append("t")
    program._compiled = True
    assert program_fingerprint(program) == before


def test_an_adapter_is_its_class_and_its_settings() -> None:
    adapters = [
        dspy.ChatAdapter(),
        dspy.XMLAdapter(),
        TerseAdapter(),
        dspy.ChatAdapter(use_native_function_calling=True),
        dspy.ChatAdapter(native_response_types=[dspy.Reasoning]),
        dspy.TwoStepAdapter(dspy.LM("a/b")),
        dspy.TwoStepAdapter(dspy.LM("a/c")),
    ]
    assert len({adapter_fingerprint(a) for a in adapters}) == len(adapters)
    loud = dspy.ChatAdapter(callbacks=[dspy.utils.BaseCallback()])
    assert adapter_fingerprint(loud) == adapter_fingerprint(dspy.ChatAdapter())


def array(**changes: float) -> Any:
    values = numpy.linspace(0, 1, 5000, dtype="float32").reshape(50, 100)
    for at, value in changes.items():
        values[int(at[1:]), 50] = value
    return values


def test_all_of_an_array_counts() -> None:
    table = numpy.array([[{"a": 1}, None]] * 2000, dtype=object)
    other = table.copy()
    other[1000] = {"a": 2}
    values = [array(), array(_25=9), array(_25=numpy.nextafter(numpy.float32(9), 10)), array().ravel(), array().T]
    values += [array().astype("float64"), array()[:0], numpy.array(["a", "b"]), table, other]
    for value in values:
        assert stable(value) == stable(value.copy(order="F"))
    assert len({fingerprint(stable(value)) for value in values}) == len(values)


def test_all_of_a_tensor_counts() -> None:
    import torch

    tensors = [torch.from_numpy(array()), torch.from_numpy(array(_25=9)), torch.from_numpy(array()).to(torch.bfloat16)]
    tensors += [tensors[0].ravel(), tensors[0][:0], torch.tensor(1.0), torch.tensor(2.0), torch.tensor([True])]
    tensors += [torch.tensor([1 + 1j]), torch.tensor([1 + 1j]).conj()]
    for tensor in tensors:
        assert stable(tensor) == stable(tensor.clone().requires_grad_(tensor.is_floating_point()))
    assert stable(tensors[1].to_sparse()) == stable(tensors[1])
    assert stable(torch.ones(2, device="meta"))
    assert len({fingerprint(stable(tensor)) for tensor in tensors}) == len(tensors)


def test_all_of_a_table_counts() -> None:
    pandas = pytest.importorskip("pandas")

    def frame(**changes: Any) -> Any:
        rows = {"n": list(range(100)), "text": [f"row {n}" for n in range(100)], "tags": [["a"]] * 100, **changes}
        return pandas.DataFrame(rows)

    changed = frame()
    changed.loc[50, "text"] = "changed"
    frames = [frame(), changed, frame(tags=[["a"]] * 99 + [["b"]]), frame().set_index("n"), frame()[["text", "n"]]]
    frames += [
        frame(n=pandas.date_range("2024-01-01", periods=100)),
        frame(n=[float(n) for n in range(100)]),
        frame()[:0],
    ]
    frames += [frame()["n"], changed["text"], frame()["text"], frame().index, changed.set_index("text").index]
    for table in frames:
        assert stable(table) == stable(table.copy())
    assert len({fingerprint(stable(table)) for table in frames}) == len(frames)
