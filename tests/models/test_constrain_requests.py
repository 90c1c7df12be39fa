"""Which requests carry a grammar, and what that means for DSPy's cache."""

import asyncio
import json
import threading
from typing import Literal

import dspy
import pytest

import dspyc
from dspyc.compiler import Ledger, bootstrap, observe
from dspyc.errors import ConfigError
from dspyc.models.candidates import CandidatesLM
from dspyc.models.constrained import GRAMMAR, ConstrainedLM
from dspyc.signatures.structure import program_fingerprint


class Recorder:
    """An engine that answers with fixed text and keeps the requests."""

    supports_function_calling = True
    supported_params = frozenset({"tools"})

    def __init__(self, *replies: str) -> None:
        self.replies, self.requests = replies, []

    def complete(self, request: dspy.lm15.Request) -> dspy.lm15.Response:
        self.requests.append(request)
        text = self.replies[(len(self.requests) - 1) % len(self.replies)]
        message = dspy.lm15.Message.assistant(text)
        usage = dspy.lm15.Usage(input_tokens=1, output_tokens=1)
        return dspy.lm15.Response(id=None, model=request.model, message=message, finish_reason="stop", usage=usage)

    def grammars(self) -> list[list[str] | None]:
        """The fields of each request's grammar."""
        found = [(request.config.extensions or {}).get("metadata", {}).get(GRAMMAR) for request in self.requests]
        return [None if text is None else [name for name, _ in json.loads(text)["fields"]] for text in found]


class AsyncRecorder:
    def __init__(self, engine: Recorder) -> None:
        self.engine = engine

    async def complete(self, request: dspy.lm15.Request) -> dspy.lm15.Response:
        return self.engine.complete(request)


def lm_of(engine: Recorder, *, cache: bool = False) -> ConstrainedLM:
    return ConstrainedLM("local/recorder", engine=engine, async_engine=AsyncRecorder(engine), cache=cache)


CHAT_REPLY = "[[ ## reasoning ## ]]\nso\n\n[[ ## a ## ]]\n3\n\n[[ ## completed ## ]]"
JSON_REPLY = '{"reasoning": "so", "a": 3}'


@pytest.mark.parametrize(
    ("adapter", "reply"),
    [(dspy.ChatAdapter(), CHAT_REPLY), (dspy.JSONAdapter(), JSON_REPLY), (dspyc.TerseAdapter(), "so\n3")],
    ids=lambda value: type(value).__name__,
)
def test_predictors_requests_carry_their_signatures_grammar(adapter, reply):
    engine = Recorder(reply)
    program = dspy.ChainOfThought("q -> a: int")
    program.set_lm(lm_of(engine))
    with dspy.context(adapter=adapter):
        assert program(q="?").a == 3
        assert asyncio.run(program.acall(q="?")).a == 3
        dspy.Parallel(num_threads=2)([(program, {"q": "!"}), (program, {"q": "."})])
    assert engine.grammars() == [["reasoning", "a"]] * 4


def test_a_predictor_that_carries_its_adapter():
    engine = Recorder("so\n3")
    program = dspy.ChainOfThought("q -> a: int")
    program.set_lm(lm_of(engine))
    dspyc.signatures.adapt(program.predict, dspyc.TerseAdapter())
    assert program(q="?").a == 3
    assert engine.grammars() == [["reasoning", "a"]]


def test_the_second_try_of_chat_adapter_is_json():
    engine = Recorder("no format at all", JSON_REPLY)
    program = dspy.ChainOfThought("q -> a: int")
    program.set_lm(lm_of(engine))
    assert program(q="?").a == 3
    first, second = (request.config.extensions["metadata"][GRAMMAR] for request in engine.requests)
    assert "completed" in first
    assert "completed" not in second


class Asks(dspy.Module):
    """Asks its language model itself, then a predictor whose tool asks another."""

    def __init__(self, lm: dspy.LM) -> None:
        super().__init__()
        self.lm, self.outer, self.inner = lm, dspy.Predict("q -> a: int"), dspy.Predict("q -> b: bool")

    def forward(self, q: str) -> None:
        self.lm(messages=[{"role": "user", "content": q}])
        self.outer(q=q)
        self.inner(q=q)
        self.lm("once more")


def test_only_what_predictors_ask_is_constrained():
    engine = Recorder("[[ ## a ## ]]\n3\n\n[[ ## b ## ]]\nTrue")
    program = Asks(lm_of(engine))
    program.set_lm(program.lm)
    program(q="?")
    program.lm("hello")
    assert engine.grammars() == [None, ["a"], ["b"], None, None]


class Curious(dspy.Predict):
    """A predictor that asks something of its own before it predicts."""

    def forward(self, **kwargs):
        self.lm("What might this be?")
        return super().forward(**kwargs)


def test_a_request_is_not_taken_for_the_predictors_when_it_is_not():
    engine = Recorder("[[ ## a ## ]]\n3")
    predictor = Curious("q -> a: int")
    predictor.lm = lm_of(engine)
    predictor(q="?")
    predictor(q="?", signature=dspy.Signature("q -> a: float"))
    assert engine.grammars() == [None, ["a"], None, None]


def test_a_call_with_its_own_signature_is_free_though_its_prompt_is_the_same():
    engine = Recorder("x")
    predictor = dspy.Predict("q -> label: Literal['a', 'b']")
    predictor.lm = lm_of(engine)
    own = predictor.signature.with_updated_fields("label", type_=Literal["x", "y"])
    with dspy.context(adapter=dspyc.TerseAdapter()):
        assert predictor(q="?", signature=own).label == "x"
        assert asyncio.run(predictor.acall(q="?", signature=own)).label == "x"
    assert engine.grammars() == [None, None]


def test_a_signature_with_more_inputs_asks_for_the_same_outputs():
    """As dspy.Refine does, which adds a hint to the signature inside the adapter."""

    class Hinting(dspy.ChatAdapter):
        def __call__(self, lm, lm_kwargs, signature, demos, inputs):
            signature = signature.append("hint_", dspy.InputField(), str)
            return super().__call__(lm, lm_kwargs, signature, demos, {**inputs, "hint_": "think"})

    engine = Recorder("[[ ## a ## ]]\n3")
    predictor = dspy.Predict("q -> a: int")
    predictor.lm = lm_of(engine)
    with dspy.context(adapter=Hinting()):
        predictor(q="?")
    assert engine.grammars() == [["a"]]


def test_replies_that_may_call_tools_are_free():
    engine = Recorder("[[ ## a ## ]]\n3")
    predictor = dspy.Predict("q, tools: list[dspy.Tool] -> a: int, calls: dspy.ToolCalls")
    predictor.lm = lm_of(engine)
    with dspy.context(adapter=dspy.ChatAdapter(use_native_function_calling=True)):
        predictor(q="?", tools=[dspy.Tool(threading.get_ident, name="id", desc="", args={})])
    assert engine.requests[0].tools
    assert engine.grammars() == [None]


def test_the_cache_keeps_constrained_and_free_answers_apart():
    constrained, free = Recorder("[[ ## a ## ]]\n1"), Recorder("[[ ## a ## ]]\n2")
    predictor = dspy.Predict("q -> a: int")
    predictor.lm = lm_of(constrained, cache=True)
    assert [predictor(q="kept apart?").a for _ in range(2)] == [1, 1]
    predictor.lm = dspy.LM("local/recorder", engine=free)
    assert [predictor(q="kept apart?").a for _ in range(2)] == [2, 2]
    assert (len(constrained.requests), len(free.requests)) == (1, 1)


def test_the_cache_keeps_signatures_apart_that_look_alike_in_a_prompt():
    engine = Recorder("card", "cash")
    program = [dspy.Predict("q -> kind: Literal['card']"), dspy.Predict("q -> kind: str")]
    with dspy.context(adapter=dspyc.TerseAdapter(), lm=lm_of(engine, cache=True)):
        assert [predictor(q="alike?").kind for predictor in program] == ["card", "cash"]


def asked_in_a_run(folder, lm, predictor, adapter):
    """The answer of one example in the ledger of a folder."""
    predictor.lm = lm
    with Ledger(folder) as ledger, dspy.context(adapter=adapter):
        subject = observe(predictor, "student", identity="one")
        example = dspy.Example(q="?").with_inputs("q")
        (trace,) = bootstrap(subject, [example], metric=lambda *_: 1.0, ledger=ledger, show_progress=False)
    return trace.prediction.toDict()


def test_a_ledger_keeps_constrained_and_free_answers_apart(tmp_path):
    constrained, free = Recorder("[[ ## a ## ]]\n1"), Recorder("[[ ## a ## ]]\n2")
    free_lm = CandidatesLM("local/recorder", engine=free, async_engine=AsyncRecorder(free), cache=False)
    for _ in range(2):
        for lm, answer in ((free_lm, 2), (lm_of(constrained), 1)):
            found = asked_in_a_run(tmp_path, lm, dspy.Predict("q -> a: int"), dspy.ChatAdapter())
            assert found == {"a": answer}
    assert (len(constrained.requests), len(free.requests)) == (1, 1)


def test_a_ledger_keeps_signatures_apart_that_look_alike_in_a_prompt(tmp_path):
    engine = Recorder("a", "c")
    for _ in range(2):
        for options, answer in ((Literal["a", "b"], "a"), (Literal["a", "b", "c"], "c")):
            signature = dspy.Signature("q -> kind").with_updated_fields("kind", type_=options)
            found = asked_in_a_run(tmp_path, lm_of(engine), dspy.Predict(signature), dspyc.TerseAdapter())
            assert found == {"kind": answer}
    assert len(engine.requests) == 2


def test_programs_with_a_constrained_and_a_free_model_have_names_of_their_own():
    engine, names = Recorder(), set()
    for kind in (dspy.LM, CandidatesLM, ConstrainedLM):
        program = dspy.Predict("q -> a")
        program.lm = kind("local/recorder", engine=engine)
        names.add(program_fingerprint(program))
    assert len(names) == 2  # what is constrained is named as before, so that its run folders are found


def test_a_type_without_a_grammar_is_named_in_the_first_call():
    predictor = dspy.Predict(
        dspy.Signature({"q": (str, dspy.InputField()), "a": (Literal["a\nb"], dspy.OutputField())})
    )
    predictor.lm = lm_of(engine := Recorder("x"))
    with pytest.raises(ConfigError, match="Output `a`"):
        predictor(q="?")
    assert not engine.requests


def test_local_lms_are_constrained_unless_told_otherwise(llama):
    assert isinstance(dspyc.LocalLM(llama), ConstrainedLM)
    assert isinstance(dspyc.LocalLM(llama).copy(temperature=1.0), ConstrainedLM)
    assert not isinstance(dspyc.LocalLM(llama, constrained=False), ConstrainedLM)


def test_a_constrained_lm_comes_back_from_its_state(llama):
    lm = dspyc.LocalLM(llama, max_tokens=7)
    again = dspy.BaseLM.load_state(lm.dump_state(), allow_custom_lm_class=True)
    assert isinstance(again, ConstrainedLM)
    assert again.model == lm.model
    assert again.kwargs["max_tokens"] == 7
