"""What a local model thinks of each option of a choice, as confidence for gates and for abstention.

    dspyc.choice_probabilities(predictor, ticket="Where is my parcel?")
    {"intent": {"delivery": 0.93, "refund": 0.05, "other": 0.02}}

These are the model's own probabilities (`models.choices`), not numbers that it wrote. A signature whose outputs are all of
DSPy's decision types (`Choice`, `Noul`, `Score`) gets them without asking: see `evidence`.
"""

import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Generator, Mapping
from enum import Enum, EnumMeta
from typing import Any, Literal, get_args, get_origin

import dspy
from dspy import lm15
from dspy.adapters.decision_state import DecisionState
from dspy.adapters.types.decision import Choice, Noul, Score

from ..errors import ConfigError
from ..signatures.adapted import adapt, adapter_of
from ..signatures.grammar import has_grammar, written_value
from ..signatures.render import prompt
from .candidates import CandidatesLM
from .choices import Choices

Asking = Generator[lm15.Request, lm15.Response, dict[str, Any]]


def choice_probabilities(predictor: dspy.Predict | dspy.ChainOfThought, **inputs: Any) -> dict[str, dict[Any, float]]:
    """The probability of every option of `predictor`'s choices: its outputs that are a `Literal`, an `Enum` or a bool.

    DSPy's decision types are choices too, asked as such: `Choice` of its options, `Noul` of a bool, `Score` of its levels'
    numbers. Each choice is looked at behind the outputs before it. Where such an output is no choice, such as the reasoning of
    `dspy.ChainOfThought`, the predictor is called first and its answer stands there; otherwise the likeliest options
    do. The options of a choice add up to 1.

    Args:
        predictor: A `dspy.Predict` or `dspy.ChainOfThought` on a `dspyc.LocalLM`, with ChatAdapter, JSONAdapter or
            TerseAdapter.
        **inputs: As in a call of it.

    Raises:
        ConfigError: The predictor has no choices, another kind of LM, or an adapter of another format.
    """
    predictor = _as_choices(_predictor_of(predictor))
    signature, lm = predictor.signature, predictor.lm or dspy.settings.lm
    choices = {name: found for name in signature.output_fields if (found := _options(signature, name))}
    if not choices:
        raise ConfigError(
            f"The outputs {list(signature.output_fields)} have no options to choose from.",
            hint="Declare an output as a Literal, an Enum or a bool.",
        )
    for name, members in choices.items():
        if len({*members.values()}) < len(members):
            raise ConfigError(
                f"Some options of `{name}`, {list(members.values())}, are equal to Python.",
                hint="Use options of one type; 1 == True.",
            )
    if not isinstance(lm, CandidatesLM):
        raise ConfigError(
            f"A {type(lm).__name__} does not tell the probabilities of options.",
            hint="Set a model of this machine: predictor.lm = dspyc.LocalLM(...).",
        )
    outputs = list(signature.output_fields)
    before = outputs[: max(outputs.index(name) for name in choices)]
    known = {} if all(name in choices for name in before) else dict(predictor(**inputs).items())
    found = answered(_ask(predictor, signature, inputs, known, lm), lm)
    return {name: {member: found[name][label] for label, member in choices[name].items()} for name in choices}


def _predictor_of(program: Any) -> dspy.Predict:
    """A predictor, or that of a `dspy.ChainOfThought`."""
    found = program.predict if isinstance(program, dspy.ChainOfThought) else program
    if isinstance(found, dspy.Predict):
        return found
    names = [name for name, _ in found.named_predictors()] if isinstance(found, dspy.Module) else []
    raise ConfigError(
        f"choice_probabilities got a {type(found).__name__}; a dspy.Predict or a dspy.ChainOfThought is allowed.",
        hint=f"Pass one of its predictors: {', '.join(names)}."
        if names
        else "Pass the predictor whose choices you ask for.",
    )


def _as_choices(predictor: dspy.Predict) -> dspy.Predict:
    """The predictor with plain choices in the place of DSPy's decision types; itself where it has none.

    Raises:
        ConfigError: A decision that DSPy cannot ask for either.
    """
    decisions = DecisionState(predictor.signature, predictor.fields)
    if not decisions.types:
        return predictor
    fields = predictor.signature.output_fields
    try:
        questions = {name: decisions._question(name, fields[name], kind) for name, kind in decisions.types.items()}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    twin = dspy.Predict(_plain_signature(predictor.signature, decisions, questions), **predictor.config)
    twin.lm = predictor.lm
    twin.demos = [
        {**demo, **{name: _plain_value(demo[name]) for name in decisions.types if name in demo}}
        for demo in predictor.demos
    ]
    adapt(twin, adapter_of(predictor))
    return twin


def decides(predictor: Any) -> bool:
    """Whether all outputs of a predictor are declared as decisions, and it is called as nothing but itself.

    DSPy asks such a predictor's LM for evidence instead of a reply, if the LM takes such questions. Beside other outputs a
    decision stays text that the model writes, and so it does with generation settings, which evidence has no use for.
    """
    if not isinstance(predictor, dspy.Predict) or dspy.settings.send_stream is not None or _asked_settings(predictor):
        return False
    types = DecisionState(predictor.signature, predictor.fields).types
    adapter = adapter_of(predictor)
    return set(types) == set(predictor.signature.output_fields) and has_grammar(adapter)


_FORWARDS = {inspect.unwrap(each).__code__ for each in (dspy.Predict.forward, dspy.Predict.aforward)}


def _asked_settings(predictor: dspy.Predict) -> dict[str, Any]:
    """The generation settings of the predictor's call that is under way, or else its own.

    DSPy asks an LM whether it takes questions before it says with which settings, and refuses these afterwards; so they
    are read where DSPy has them.
    """
    frame = sys._getframe()
    while (caller := frame.f_back) is not None:
        frame = caller
        if frame.f_code in _FORWARDS and frame.f_locals.get("self") is predictor:
            return frame.f_locals.get("config") or {}
    return predictor.config or {}


def evidence(predictor: dspy.Predict, asked: Mapping[str, Any], lm: Any) -> Asking:
    """DSPy's evidence for decisions, asked as plain choices: options, yes or no, and a score's levels by their numbers.

    So the prompt is that of the same signature with `Literal`, `bool` and numbers, which a student can be trained on. What an
    option is said to mean is added to its field's description. The likeliest option's probability is the confidence of
    a `Choice` or a `Score`. The generator gives the requests to be made and takes their responses.

    Args:
        asked: DSPy's decision request: `state` with the inputs and demos, and the `questions`.
    """
    state, decisions = asked["state"], DecisionState(predictor.signature, predictor.fields)
    signature = _plain_signature(predictor.signature, decisions, asked["questions"])
    found = yield from _ask(predictor, signature, state["inputs"], {}, lm, demos=state.get("demos"))
    answers: dict[str, Any] = {}
    for name, kind in decisions.types.items():
        probabilities = found[name]
        if issubclass(kind, Noul):
            answers[name] = {"noul": probabilities["True"]}
        else:
            answers[name] = {"probabilities": probabilities, "confidence": max(probabilities.values())}
    return answers


def _plain_signature(
    signature: type[dspy.Signature], decisions: DecisionState, questions: Mapping[str, Mapping[str, Any]]
) -> type[dspy.Signature]:
    """The signature with a plain choice in the place of each decision."""
    for name, kind in decisions.types.items():
        told = _told(signature.output_fields[name], questions[name])
        signature = signature.with_updated_fields(name, type_=_plain(kind), **({"desc": told} if told else {}))
    return signature


def _told(field: Any, question: Mapping[str, Any]) -> str | None:
    """The description of a field whose options have meanings of their own; None where they have not."""
    criteria = question.get("criteria")
    meanings = list(criteria.values()) if isinstance(criteria, dict) else criteria or []
    if not any(meanings):
        return None
    return f"{field.json_schema_extra['desc']}\n{json.dumps(question, ensure_ascii=False, indent=2)}"


def _plain(kind: Any) -> Any:
    if issubclass(kind, Noul):
        return bool
    if issubclass(kind, Score):
        return Literal[tuple(range(len(kind.criteria())))]
    return kind.model_fields["value"].annotation


def _plain_value(value: Any) -> Any:
    """A decision, as the plain choice's value."""
    if isinstance(value, Score):
        return value.level if value.level is not None else round(value.value)
    return value.value if isinstance(value, (Choice, Noul)) else value


def _ask(
    predictor: dspy.Predict,
    signature: type[dspy.Signature],
    inputs: Mapping[str, Any],
    known: dict[str, Any],
    lm: Any,
    *,
    demos: Any = None,
) -> Asking:
    """Asks for one choice after the other; what `known` does not say is the likeliest option from then on."""
    adapter = adapter_of(predictor)
    twin = predictor if signature is predictor.signature else dspy.Predict(signature)
    messages = prompt(twin, inputs, adapter=adapter, lm=lm, demos=predictor.demos if demos is None else demos).messages
    plain = lm15.request_from_openai_chat({"model": lm.model, "messages": messages})
    options = {name: members for name in signature.output_fields if (members := _options(signature, name))}
    values = {**{name: next(iter(members.values())) for name, members in options.items()}, **known}
    found: dict[str, dict[str, float]] = {}
    for name, members in options.items():
        response = yield _choices(name, members, values, signature, adapter).request(plain)
        found[name] = (response.probabilities or {})[name]
        if name not in known:
            values[name] = members[max(found[name], key=lambda label: found[name][label])]
    return found


def answered(asking: Asking, ask: Callable[[lm15.Request], lm15.Response]) -> dict[str, Any]:
    """What a generator of requests comes to, each answered by `ask`."""
    try:
        request = next(asking)
        while True:
            request = asking.send(ask(request))
    except StopIteration as over:
        return over.value  # type: ignore[no-any-return]


async def answered_later(asking: Asking, ask: Callable[[lm15.Request], Awaitable[lm15.Response]]) -> dict[str, Any]:
    """As `answered`, each request awaited."""
    try:
        request = next(asking)
        while True:
            request = asking.send(await ask(request))
    except StopIteration as over:
        return over.value  # type: ignore[no-any-return]


def _choices(
    name: str, members: dict[str, Any], values: dict[str, Any], signature: type[dspy.Signature], adapter: dspy.Adapter
) -> Choices:
    """Where the option stands in the reply that the adapter writes: the replies with each option differ there only."""
    whole = dict.fromkeys(signature.output_fields) | values
    replies = {
        label: str(adapter.format_assistant_message_content(signature, {**whole, name: member}))
        for label, member in members.items()
    }
    texts = {label: written_value(member, name, signature, adapter) for label, member in members.items()}
    if len({*texts.values()}) < len(texts):
        raise ConfigError(
            f"Some options of `{name}`, {list(members.values())}, are the same text in what {type(adapter).__name__} writes.",
            hint="Use options that differ as text, or dspy.JSONAdapter where they differ by type.",
        )
    first = next(iter(replies.values()))
    for start in range(len(first), -1, -1):
        rests = {replies[label][start + len(text) :] for label, text in texts.items()}
        alike = {replies[label][:start] for label in texts} == {first[:start]}
        if alike and len(rests) == 1 and all(replies[label].startswith(text, start) for label, text in texts.items()):
            return Choices(name, first[:start], texts, rests.pop())
    raise ConfigError(
        f"The options of `{name}` cannot be told apart in what {type(adapter).__name__} writes.",
        hint="Use options that are text on one line.",
    )


def _options(signature: type[dspy.Signature], name: str) -> dict[str, Any]:
    """The members of a choice by their labels; {} for other outputs."""
    annotation: Any = signature.output_fields[name].annotation
    if get_origin(annotation) is Literal:
        found: dict[str, Any] = {}
        for member in get_args(annotation):
            label = str(member.name if isinstance(member, Enum) else member)
            found[f"{type(member).__name__} {label}" if label in found else label] = member
        return found
    if isinstance(annotation, EnumMeta):
        return dict(annotation.__members__)
    return {"True": True, "False": False} if annotation is bool else {}
