"""Options scored exactly, against the model's own forward pass; and DSPy's decisions filled with them."""

import asyncio
import json
import math
from enum import Enum
from typing import Annotated, Literal

import dspy
import pytest
import torch
from dspy.adapters.decision import resolve_adapter
from dspy.adapters.types.decision import Choice, Noul, Score

import dspyc
from dspyc.compiler import Ledger, bootstrap, observe
from dspyc.errors import ConfigError
from dspyc.models import LocalEngine, load_model
from dspyc.signatures import adapt, prompt
from dspyc.signatures.nearest import Nearest, choose_nearest
from tests.models import small

ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspyc.TerseAdapter()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.llama(tmp_path_factory.mktemp("choices") / "llama", context=8192)


@pytest.fixture
def lm(folder):
    return dspyc.LocalLM(folder, cache=False, max_tokens=900)


def by_hand(lm, predictor, adapter, inputs, replies: dict, ends: dict) -> dict:
    """The probabilities of whole replies up to a place each, by one plain forward pass for each."""
    engine: LocalEngine = lm.engine
    model = load_model(engine.path, "cpu", "float32")
    asked = engine.chat.prompt_ids(prompt(predictor, inputs, adapter=adapter, lm=lm).messages)
    logs = {}
    for option, reply in replies.items():
        row = [*engine.chat.text_ids(reply), engine.chat.end_of_turn_id]
        stop = next((k for k in range(len(row)) if len(engine.chat.decode(row[:k]).encode()) > ends[option]), len(row))
        with torch.inference_mode():
            scores = model(input_ids=torch.tensor([asked + row])).logits[0].float().log_softmax(-1)
        logs[option] = sum(float(scores[len(asked) + k - 1, row[k]]) for k in range(stop))
    total = sum(math.exp(log) for log in logs.values())
    return {option: math.exp(log) / total for option, log in logs.items()}


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_probabilities_are_those_of_whole_sequences(lm, adapter):
    signature = dspy.Signature("ticket -> kind: Literal['card', 'card payment', 'cash']")
    predictor = dspy.Predict(signature)
    predictor.lm = lm
    with dspy.context(adapter=adapter):
        found = dspyc.choice_probabilities(predictor, ticket="Where is it?")["kind"]
    members = ["card", "card payment", "cash"]
    replies = {m: adapter.format_assistant_message_content(signature, {"kind": m}) for m in members}
    written = {m: f'"{m}"' if isinstance(adapter, dspy.JSONAdapter) else m for m in members}
    ends = {m: len(replies[m][: replies[m].rindex(written[m])]) + len(written[m]) for m in members}
    expected = by_hand(lm, predictor, adapter, {"ticket": "Where is it?"}, replies, ends)
    assert found == pytest.approx(expected, abs=1e-4)
    assert sum(found.values()) == pytest.approx(1)


class Level(Enum):
    LOW = "low"
    HIGH = "high"


def test_every_choice_is_looked_at_behind_what_stands_before_it(lm):
    predictor = dspy.Predict(
        dspy.Signature(
            {
                "q": (str, dspy.InputField()),
                "level": (Level, dspy.OutputField()),
                "sure": (bool, dspy.OutputField()),
                "code": (Literal[1, 22], dspy.OutputField()),
            }
        )
    )
    predictor.lm = lm
    found = dspyc.choice_probabilities(predictor, q="?")
    assert [list(options) for options in found.values()] == [[Level.LOW, Level.HIGH], [True, False], [1, 22]]
    assert all(sum(options.values()) == pytest.approx(1) for options in found.values())
    assert lm.engine.calls == 3


def test_reasoning_is_written_first(lm):
    program = dspy.ChainOfThought("q -> label: Literal['yes', 'no'], note: str")
    program.set_lm(lm)
    (name,) = dspyc.choice_probabilities(program.predict, q="?")
    assert name == "label"
    assert lm.engine.calls == 2


def test_one_option_is_certain_and_answers_are_cached(llama):
    predictor = dspy.Predict("q -> a: Literal['only']")
    predictor.lm = dspyc.LocalLM(llama)
    before = predictor.lm.engine.calls
    for _ in range(2):
        assert dspyc.choice_probabilities(predictor, q="cached?") == {"a": {"only": 1.0}}
    assert predictor.lm.engine.calls == before + 1


def test_options_that_differ_by_type_only(lm):
    predictor = dspy.Predict("q -> a: Literal['1', 1]")
    predictor.lm = lm
    with dspy.context(adapter=dspy.JSONAdapter()):
        found = dspyc.choice_probabilities(predictor, q="?")["a"]
    assert set(found) == {"1", 1}
    assert sum(found.values()) == pytest.approx(1)
    with dspy.context(adapter=dspy.ChatAdapter()), pytest.raises(ConfigError, match="same text"):
        dspyc.choice_probabilities(predictor, q="?")
    predictor = dspy.Predict("q -> a: Literal[True, 1]")
    with pytest.raises(ConfigError, match="equal to Python"):
        dspyc.choice_probabilities(predictor, q="?")


def test_a_free_model_tells_the_same(lm, folder):
    predictor = dspy.Predict("q -> a: bool")
    predictor.lm = lm
    expected = dspyc.choice_probabilities(predictor, q="?")
    predictor.lm = dspyc.LocalLM(folder, cache=False, constrained=False)
    assert dspyc.choice_probabilities(predictor, q="?") == expected


def test_a_program_is_refused_by_name(lm):
    with pytest.raises(ConfigError, match=r"ReAct.*react, extract\.predict"):
        dspyc.choice_probabilities(dspy.ReAct("q -> a: bool", tools=[len]), q="?")
    with pytest.raises(ConfigError, match="got a str"):
        dspyc.choice_probabilities("q -> a: bool", q="?")


def test_what_has_no_options_or_no_local_model_is_refused(lm):
    predictor = dspy.Predict("q -> a: str")
    predictor.lm = lm
    with pytest.raises(ConfigError, match="no options"):
        dspyc.choice_probabilities(predictor, q="?")
    predictor = dspy.Predict("q -> a: bool")
    predictor.lm = dspyc.ScriptedLM(lambda *_: "True")
    with pytest.raises(ConfigError, match="does not tell"):
        dspyc.choice_probabilities(predictor, q="?")
    predictor.lm = lm
    with dspy.context(adapter=dspy.XMLAdapter()), pytest.raises(ConfigError, match="XMLAdapter"):
        dspyc.choice_probabilities(predictor, q="?")


QUEUE = Choice[("billing", ""), ("technical", "")]
ANGER = Score["calm", "cross", "furious"]


class Decide(dspy.Signature):
    """Judge a ticket."""

    ticket: str = dspy.InputField()
    queue: QUEUE = dspy.OutputField(desc="where it goes")
    urgent: Noul = dspy.OutputField(desc="whether it is urgent")
    anger: ANGER = dspy.OutputField(desc="how angry it sounds")
    kind: Annotated[Literal["a", "b"], Choice] = dspy.OutputField(desc="its kind")


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_decisions_hold_the_models_own_probabilities(lm, adapter):
    predictor = dspy.Predict(Decide)
    predictor.lm = lm
    with dspy.context(adapter=adapter):
        found = predictor(ticket="Help!")
        again = asyncio.run(predictor.acall(ticket="Help!"))
    assert found.toDict() == again.toDict()
    assert sum(found.queue.probabilities.values()) == pytest.approx(1)
    assert found.queue.value == max(found.queue.probabilities, key=found.queue.probabilities.get)
    assert found.queue.confidence == max(found.queue.probabilities.values())
    assert found.urgent.value == (found.urgent.probability >= 0.5)
    assert sum(found.anger.probabilities.values()) == pytest.approx(1)
    assert found.anger.value == pytest.approx(sum(i * p for i, p in found.anger.probabilities.items()))
    assert found.kind in ("a", "b")


def test_a_decision_is_what_the_plain_choice_would_be(lm):
    declared = dspy.Signature(
        {"q": (str, dspy.InputField()), "x": (Choice[("p", ""), ("q", "")], dspy.OutputField(desc="d"))}
    )
    plain = dspy.Signature({"q": (str, dspy.InputField()), "x": (Literal["p", "q"], dspy.OutputField(desc="d"))})
    found, expected = dspy.Predict(declared), dspy.Predict(plain)
    found.lm = expected.lm = lm
    assert found(q="?").x.probabilities == pytest.approx(dspyc.choice_probabilities(expected, q="?")["x"])


def test_terse_adapter_names_the_signature_that_a_student_was_trained_on(lm):
    def triage(kind):
        class Triage(dspy.Signature):
            ticket: str = dspy.InputField()
            queue: kind = dspy.OutputField(desc="where it goes")

        predictor = dspy.Predict(Triage)
        predictor.lm = lm
        return predictor

    decided, plain = triage(Choice[("p", ""), ("q", "")]), triage(Literal["p", "q"])
    with dspy.context(adapter=dspyc.TerseAdapter()):
        expected = prompt(plain, {"ticket": "?"}, adapter=dspyc.TerseAdapter(), lm=lm).messages
        found = decided(ticket="?").queue.probabilities
        assert lm.history[-1]["messages"] == expected
        assert found == pytest.approx(dspyc.choice_probabilities(plain, ticket="?")["queue"])
    assert expected[0]["content"] == "Triage"


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_a_literal_that_is_a_decision_is_asked_as_a_literal(lm, adapter):
    def asking(kind):
        predictor = dspy.Predict(
            dspy.Signature({"q": (str, dspy.InputField()), "x": (kind, dspy.OutputField(desc="d"))})
        )
        predictor.demos = [dspy.Example(q="!", x="q")]
        return predictor

    plain = Literal["p", "q"]
    expected = prompt(asking(plain), {"q": "?"}, adapter=adapter, lm=lm).messages
    with dspy.context(adapter=adapter, lm=lm):
        assert asking(Annotated[plain, Choice])(q="?").x in ("p", "q")
    assert lm.history[-1]["messages"] == expected


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_demos_with_decisions_read_the_same_when_they_were_saved(lm, adapter):
    predictor, again = dspy.Predict(Decide), dspy.Predict(Decide)
    for each in (predictor, again):
        adapt(each, adapter)
    with dspy.context(lm=lm):
        shown = predictor(ticket="Hello!").toDict()
        unsure = {"anger": ANGER(value=1.8, confidence=0.5)}
        predictor.demos = [dspy.Example(ticket="Hello!", **shown), dspy.Example(ticket="Hm.", **{**shown, **unsure})]
        again.load_state(json.loads(json.dumps(predictor.dump_state())))
        prompts = []
        for each in (predictor, again):
            each(ticket="Help!")
            prompts.append(lm.history[-1]["messages"])
    assert prompts[0] == prompts[1]
    assert "confidence" not in str(prompts)


@pytest.mark.parametrize(("declared", "desc"), [("how it goes", "how it goes"), (None, "")])
def test_instructions_of_the_predictors_own_are_told(lm, declared, desc):
    def told():
        predictor(q="?")
        return lm.history[-1]["messages"][0]["content"]

    output = dspy.OutputField(desc=declared) if declared else dspy.OutputField()
    predictor = dspy.Predict(dspy.Signature({"q": (str, dspy.InputField()), "sure": (Noul, output)}))
    predictor.lm = lm
    predictor.fields["sure"] = {"instructions": "Is it certain?"}
    assert f'1. `sure` (bool): {desc}\n{{\n  "instructions": "Is it certain?"' in told().replace("        ", "")
    if declared:
        predictor.fields["sure"] = {"instructions": declared}
        assert "instructions" not in told()


@pytest.mark.parametrize("config", [{"temperature": 1.0}, {"n": 3}, {"rollout_id": 3}, {"max_tokens": 700}])
def test_generation_settings_do_not_change_how_sure_the_model_is(lm, config):
    predictor = dspy.Predict(Decide)
    predictor.lm = lm
    expected = predictor(ticket="Help!").queue.probabilities
    for found in (
        predictor(ticket="Help!", config=config),
        asyncio.run(predictor.acall(ticket="Help!", config=config)),
    ):
        assert [each.probabilities for each in found.completions.queue] == [expected] * config.get("n", 1)
    assert len(predictor(ticket="Help!", lm=lm.copy(n=2)).completions.queue) == 2
    assert len(predictor(ticket="Help!", lm=lm.copy(n=2, temperature=1.0)).completions.queue) == 2


def test_with_log_probabilities_a_decision_is_text(lm):
    predictor = dspy.Predict(Decide)
    predictor.lm = lm
    before = predictor(ticket="Help!")
    found = predictor(ticket="Help!", config={"logprobs": True})
    assert found.queue.probabilities != before.queue.probabilities
    assert found.logprobs


def test_decisions_are_choices_too(lm):
    predictor = dspy.Predict(Decide)
    predictor.lm = lm
    decided, found = predictor(ticket="Help!"), dspyc.choice_probabilities(predictor, ticket="Help!")
    assert found["queue"] == pytest.approx(decided.queue.probabilities)
    assert found["urgent"][True] == pytest.approx(decided.urgent.probability)
    assert found["anger"] == pytest.approx(decided.anger.probabilities)
    assert set(found["kind"]) == {"a", "b"}


def test_decisions_are_looked_at_behind_the_demos_that_a_call_would_choose(lm):
    predictor = dspy.Predict("ticket -> sure: bool")
    predictor.signature = predictor.signature.with_updated_fields("sure", type_=Noul, desc="sure")
    predictor.lm = lm
    predictor.demos = [dspy.Example(ticket=text, sure=True) for text in ("My card was lost", "Where is my parcel?")]
    choose_nearest(predictor, Nearest(1))
    expected = predictor(ticket="My card was stolen").sure.probability
    called = lm.history[-1]["messages"]
    found = dspyc.choice_probabilities(predictor, ticket="My card was stolen")
    assert lm.history[-1]["messages"] == called
    assert "parcel" not in str(called)
    assert found["sure"][True] == pytest.approx(expected)


def test_decisions_behind_reasoning_have_probabilities(lm):
    program = dspy.ChainOfThought(Decide)
    program.set_lm(lm)
    program.predict.demos = [
        {"ticket": "?", "reasoning": "r", "queue": "billing", "urgent": Noul(value=True, confidence=1)}
    ]
    found = dspyc.choice_probabilities(program, ticket="Help!")
    assert list(found) == ["queue", "urgent", "anger", "kind"]
    assert all(sum(options.values()) == pytest.approx(1) for options in found.values())


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_beside_other_outputs_decisions_hold_the_models_own_probabilities(lm, adapter):
    program = dspy.ChainOfThought(Decide.append("tags", dspy.OutputField(), type_=list[str]))
    program.set_lm(lm)
    program.predict.demos = [{"ticket": "?", "reasoning": "r", "queue": "billing", "tags": []}]
    with dspy.context(adapter=adapter):
        found = program(ticket="Help!")
        again = asyncio.run(program.acall(ticket="Help!"))
        expected = dspyc.choice_probabilities(program, ticket="Help!")
    for each in (found, again):
        assert each.queue.probabilities == pytest.approx(expected["queue"], abs=1e-6)
        assert each.urgent.probability == pytest.approx(expected["urgent"][True], abs=1e-6)
        assert each.anger.probabilities == pytest.approx(expected["anger"], abs=1e-6)
    assert isinstance(found.reasoning, str)
    assert isinstance(found.tags, list)
    assert (again.reasoning, again.tags) == (found.reasoning, found.tags)


def test_several_replies_have_evidence_of_their_own(lm):
    program = dspy.ChainOfThought(
        dspy.Signature("q -> sure: bool").with_updated_fields("sure", type_=Noul, desc="sure")
    )
    program.set_lm(lm)
    found = program(q="?", config={"n": 3, "temperature": 1.0})
    reasons, sure = found.completions.reasoning, [each.probability for each in found.completions.sure]
    assert len({*reasons}) == len({*sure}) == 3


def test_a_ledger_remembers_decisions(lm, tmp_path):
    program = dspy.ChainOfThought(Decide)
    program.set_lm(lm)
    examples = [dspy.Example(ticket="Help!").with_inputs("ticket")]
    judge = dspy.Predict("q -> a: bool")
    judge.lm = lm

    def metric(*_):
        return dspyc.choice_probabilities(judge, q="?")["a"][True]

    found, calls = [], []
    for _ in range(2):
        with Ledger(tmp_path) as ledger:
            subject = observe(program, "student", identity="one")
            (trace,) = bootstrap(subject, examples, metric=metric, ledger=ledger, show_progress=False)
        found.append((trace.prediction.toDict(), trace.score))
        calls.append(lm.engine.calls)
    assert calls[1] - calls[0] == 1  # the metric's own question, which is no call of the program
    assert found[0] == found[1] == (program(ticket="Help!").toDict(), metric())


def test_a_ledger_keeps_decisions_behind_other_demos_apart(lm, tmp_path):
    predictor = dspy.Predict(Decide)
    predictor.lm = lm
    examples = [dspy.Example(ticket="Help!").with_inputs("ticket")]
    found = []
    for demos in ([], [dspy.Example(ticket="!", queue="technical")], []):
        predictor.demos = demos
        with Ledger(tmp_path) as ledger, dspy.context(adapter=dspyc.TerseAdapter()):
            subject = observe(predictor, "student", identity="one")
            (trace,) = bootstrap(subject, examples, metric=lambda *_: 1.0, ledger=ledger, show_progress=False)
        found.append(trace.prediction.queue.probabilities)
    assert found[0] == found[2] != found[1]


def test_a_call_that_cannot_be_seen_is_answered_in_text(lm):
    class Own(dspy.Predict):
        def forward(self, **kwargs):
            lm, config, signature, demos, kwargs = self._forward_preprocess(**kwargs)
            adapter = resolve_adapter(lm, dspy.ChatAdapter(), signature, self.fields)
            return adapter(lm, lm_kwargs=config, signature=signature, demos=demos, inputs=kwargs)[0]

    predictor, seen = Own(Decide), dspy.Predict(Decide)
    predictor.lm = seen.lm = lm
    written, scored = predictor(ticket="Help!")["urgent"], seen(ticket="Help!").urgent
    assert written.probability != scored.probability
