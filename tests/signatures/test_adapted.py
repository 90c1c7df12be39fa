"""Predictors that carry their adapter through calls, copies, pickles and saved states."""

import asyncio
import copy
import json
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
from dspy.adapters.baml_adapter import BAMLAdapter

from dspyc.errors import ConfigError
from dspyc.signatures import TerseAdapter, adapt, adapter_of, adapter_state, copy_program, load_adapter, predictors
from dspyc.signatures.adapted import AdaptedMixin, AdaptedPredict
from dspyc.signatures.mixins import written_class

from .engines import prepared_lm
from .programs import Sort, Spicy


class Styled(dspy.ChatAdapter):
    """An adapter of a user's, which passes the rest on."""

    def __init__(self, style: str, *, api_key: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.style = style
        self.api_key = api_key


class Forgetful(dspy.ChatAdapter):
    def __init__(self, style: str) -> None:
        super().__init__()
        self.kept = style


class Doubling(dspy.ChatAdapter):
    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.size = size * 2


def adapted(adapter: dspy.Adapter, kind: type = dspy.Predict, signature: Any = "q -> a") -> Any:
    predictor = kind(signature)
    adapt(predictor, adapter)
    return predictor


def last_message(lm: dspy.LM) -> str:
    return str(lm.engine.received()[0][-1]["content"])


def test_its_own_adapter_wins_over_the_global_one_and_only_for_it() -> None:
    lm = prepared_lm("x")
    program = dspy.Module()
    program.own, program.other = adapted(TerseAdapter()), dspy.Predict("q -> a")
    with dspy.context(lm=lm, adapter=dspy.XMLAdapter()):
        assert program.own(q="hello").a == "x"
        assert last_message(lm) == "hello"
        lm.engine.reply = "<a>y</a>"
        assert program.other(q="hello").a == "y"
        assert isinstance(dspy.settings.adapter, dspy.XMLAdapter)


def test_references_and_looks_stay() -> None:
    predictor, spicy = dspy.Predict("q -> a"), Spicy("q -> a")
    program = dspy.Module()
    program.a, program.b = predictor, [predictor, spicy]
    shown = repr(spicy)
    adapt(predictor, TerseAdapter())
    adapt(spicy, TerseAdapter())
    adapt(spicy, dspy.XMLAdapter())
    assert program.b[0] is program.a is predictor
    assert type(predictor) is AdaptedPredict
    assert repr(spicy) == shown
    assert (type(spicy).__name__, type(spicy).__doc__, spicy.flavour) == ("Spicy", Spicy.__doc__, "hot")
    assert isinstance(spicy, Spicy)
    assert written_class(type(spicy)) is Spicy
    assert type(adapted(TerseAdapter(), Spicy)) is type(spicy)


def test_which_adapter_applies() -> None:
    plain, own = dspy.Predict("q -> a"), TerseAdapter()
    assert type(adapter_of(plain)) is dspy.ChatAdapter
    with dspy.context(adapter=dspy.XMLAdapter()):
        assert type(adapter_of(plain)) is dspy.XMLAdapter
        assert adapter_of(adapted(own)) is own


def test_async_calls_and_streams() -> None:
    lm = prepared_lm("x")
    predictor = adapted(TerseAdapter())

    async def stream() -> list[Any]:
        return [chunk async for chunk in dspy.streamify(predictor)(q="streamed")]

    with dspy.context(lm=lm, adapter=dspy.XMLAdapter()):
        assert asyncio.run(predictor.acall(q="awaited")).a == "x"
        assert last_message(lm) == "awaited"
        assert asyncio.run(stream())[-1].a == "x"
        assert last_message(lm) == "streamed"


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "dspy": lambda p: p.deepcopy(),
    "reset": lambda p: p.reset_copy(),
    "program": copy_program,
    "cloudpickle": lambda p: cloudpickle.loads(cloudpickle.dumps(p)),
    "pickle": lambda p: pickle.loads(pickle.dumps(p)),
}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", [dspy.Predict, Spicy])
def test_copies_carry_it(make: Any, kind: type) -> None:
    original = adapted(TerseAdapter(use_native_function_calling=True), kind, Sort)
    copied = make(original)
    assert copied is not original
    assert isinstance(copied, AdaptedMixin)
    assert type(copied) is type(original)
    assert isinstance(copied.adapter, TerseAdapter)
    assert copied.adapter.use_native_function_calling
    assert copied.history == []


@pytest.mark.parametrize("kind", [dspy.Predict, Spicy])
def test_a_saved_state_brings_it_back(tmp_path: Path, kind: type) -> None:
    program, loaded = dspy.Module(), dspy.Module()
    program.step = adapted(TerseAdapter(), kind, Sort)
    program.save(tmp_path / "state.json")
    loaded.step = adapted(dspy.ChatAdapter(), kind, Sort)
    loaded.load(tmp_path / "state.json")
    assert isinstance(loaded.step.adapter, TerseAdapter)
    assert loaded.step.signature.__name__ == "Sort"  # TerseAdapter writes it in the prompt
    assert loaded.dump_state() == program.dump_state()


def test_a_plain_program_reads_the_state_and_the_other_way_round(tmp_path: Path) -> None:
    program, plain = dspy.Module(), dspy.Module()
    program.step, plain.step = adapted(TerseAdapter()), dspy.Predict("q -> a")
    program.step.demos = [{"q": "1", "a": "2"}]
    program.save(tmp_path / "adapted.json")
    plain.save(tmp_path / "plain.json")
    plain.load(tmp_path / "adapted.json")
    lm = prepared_lm("[[ ## a ## ]]\nx")
    with dspy.context(lm=lm):
        assert plain.step(q="?").a == "x"
    assert plain.step.demos == [{"q": "1", "a": "2"}]
    assert type(adapter_of(plain.step)) is dspy.ChatAdapter
    program.load(tmp_path / "plain.json")
    assert isinstance(program.step.adapter, TerseAdapter)


@pytest.mark.parametrize(
    "adapter",
    [
        dspy.ChatAdapter(use_json_adapter_fallback=False, parallel_tool_calls=True),
        dspy.ChatAdapter(native_response_types=[dspy.Reasoning]),
        dspy.JSONAdapter(use_native_function_calling=False),
        dspy.XMLAdapter(),
        BAMLAdapter(),
        TerseAdapter(use_native_function_calling=True),
        Styled("bold", use_native_function_calling=True, callbacks=[dspy.utils.BaseCallback()]),
    ],
    ids=lambda a: type(a).__name__,
)
def test_an_adapter_comes_back_from_json(adapter: dspy.Adapter) -> None:
    state = json.loads(json.dumps(adapter_state(adapter)))
    loaded = load_adapter(state)
    ignored = {"callbacks"}
    assert type(loaded) is type(adapter)
    assert {k: v for k, v in vars(loaded).items() if k not in ignored} == {
        k: v for k, v in vars(adapter).items() if k not in ignored
    }


def test_a_state_holds_no_secret() -> None:
    state = adapter_state(Styled("bold", api_key="sk-canary"))
    assert state["arguments"] == {"style": "bold"}


def local_adapter() -> dspy.Adapter:
    class Local(dspy.ChatAdapter):
        pass

    return Local()


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (Forgetful("x"), "The adapter Forgetful cannot be saved: .* cannot be made with"),
        (Doubling(2), "The adapter Doubling cannot be saved: one made with {'size': 4} is not equal"),
        (local_adapter(), "The adapter Local cannot be saved: .* cannot be imported"),
        (dspy.TwoStepAdapter(dspy.LM("a/b")), "The adapter TwoStepAdapter cannot be saved"),
        (Styled(style={"set"}), "The adapter Styled cannot be saved"),  # type: ignore[arg-type]
    ],
)
def test_an_adapter_that_json_cannot_hold_is_refused_when_saved(adapter: dspy.Adapter, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        adapted(adapter).dump_state()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"class": "os:system", "arguments": {}}, "'os:system' is not a dspy.Adapter"),
        ({"class": "builtins:dict"}, "'builtins:dict' is not a dspy.Adapter"),
        ({"class": "no.such.module:Thing"}, "cannot be imported"),
        ({"class": "dspy:NoSuchAdapter"}, "cannot be imported"),
        ({"class": "dspy"}, "cannot be imported"),
        ({"class": ""}, "cannot be imported"),
        ({"class": 3}, "is not the state of an adapter"),
        ("dspy:ChatAdapter", "is not the state of an adapter"),
        ({"class": "dspy:ChatAdapter", "arguments": {"colour": 1}}, r"cannot be made with \['colour'\]"),
        ({"class": "dspy:ChatAdapter", "arguments": {"native_response_types": ["os:system"]}}, "is not a dspy.Type"),
    ],
)
def test_nothing_but_adapters_is_loaded(state: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_adapter(state)


def test_a_state_that_cannot_be_loaded_changes_nothing() -> None:
    predictor = adapted(TerseAdapter())
    state = {**predictor.dump_state(), "adapter": {"class": "os:system"}, "demos": [{"q": "x"}]}
    with pytest.raises(ConfigError):
        predictor.load_state(state)
    assert (predictor.demos, type(predictor.adapter)) == ([], TerseAdapter)


@pytest.mark.parametrize(
    ("predictor", "adapter"),
    [
        (dspy.ChainOfThought("q -> a"), TerseAdapter()),
        (dspy.Predict("q -> a"), TerseAdapter),
        (dspy.Predict("q -> a"), None),
    ],
)
def test_only_predictors_take_only_adapters(predictor: Any, adapter: Any) -> None:
    with pytest.raises(ConfigError, match="is allowed"):
        adapt(predictor, adapter)
    assert not any(isinstance(p, AdaptedMixin) for p in predictors(predictor).values())
