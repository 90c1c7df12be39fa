"""What a local model thinks of each option of a choice, as confidence for gates and for abstention.

    dspyc.choice_probabilities(predictor, ticket="Where is my parcel?")
    {"intent": {"delivery": 0.93, "refund": 0.05, "other": 0.02}}

These are the model's own probabilities (`models.choices`), not numbers that it wrote. A signature whose outputs are all of
DSPy's decision types (`Choice`, `Noul`, `Score`) gets them without asking: see `evidence`.
"""

import json
from collections.abc import Awaitable, Callable, Generator, Mapping
from enum import Enum, EnumMeta
from typing import Any, Literal, get_args, get_origin

import dspy
from dspy import lm15
from dspy.adapters.decision_state import DecisionState
from dspy.adapters.types.decision import Noul, Score

from ..errors import ConfigError
from ..signatures.adapted import adapter_of
from ..signatures.grammar import has_grammar, written_value
from ..signatures.render import prompt
from .choices import Choices

Asking = Generator[lm15.Request, lm15.Response, dict[str, Any]]


def choice_probabilities(predictor: dspy.Predict, **inputs: Any) -> dict[str, dict[Any, float]]:
    """The probability of every option of `predictor`'s choices: its outputs that are a `Literal`, an `Enum` or a bool.

    Each choice is looked at behind the outputs before it. Where such an output is no choice, such as the reasoning of
    `dspy.ChainOfThought`, the predictor is called first and its answer stands there; otherwise the likeliest options
    do. The options of a choice add up to 1.

    Args:
        predictor: A `dspy.Predict` on a `dspyc.LocalLM`, with ChatAdapter, JSONAdapter or TerseAdapter.
        **inputs: As in a call of it.

    Raises:
        ConfigError: The predictor has no choices, another kind of LM, or an adapter of another format.
    """
    from .constrained import ConstrainedLM

    signature, lm = predictor.signature, predictor.lm or dspy.settings.lm
    choices = {name: found for name in signature.output_fields if (found := _options(signature, name))}
    if not choices:
        raise ConfigError(
            f"The outputs {list(signature.output_fields)} have no options to choose from.",
            hint="Declare an output as a Literal, an Enum or a bool.",
        )
    if not isinstance(lm, ConstrainedLM):
        raise ConfigError(
            f"A {type(lm).__name__} does not tell the probabilities of options.",
            hint="Set a model of this machine: predictor.lm = dspyc.LocalLM(...).",
        )
    outputs = list(signature.output_fields)
    before = outputs[: max(outputs.index(name) for name in choices)]
    known = {} if all(name in choices for name in before) else dict(predictor(**inputs).items())
    found = answered(_ask(predictor, signature, inputs, known, lm), lm)
    return {name: {member: found[name][label] for label, member in choices[name].items()} for name in choices}


def decides(predictor: Any) -> bool:
    """Whether all outputs of a predictor are declared as decisions, and it is called as nothing but itself.

    DSPy asks such a predictor's LM for evidence instead of a reply, if the LM takes such questions. Beside other outputs a
    decision stays text that the model writes, and so it does with generation settings, which evidence has no use for.
    """
    if not isinstance(predictor, dspy.Predict) or predictor.config or dspy.settings.send_stream is not None:
        return False
    types = DecisionState(predictor.signature, predictor.fields).types
    adapter = adapter_of(predictor)
    return set(types) == set(predictor.signature.output_fields) and has_grammar(adapter)


def evidence(predictor: dspy.Predict, asked: Mapping[str, Any], lm: Any) -> Asking:
    """DSPy's evidence for decisions, asked as plain choices: options, yes or no, and a score's levels by their numbers.

    So the prompt is that of the same signature with `Literal`, `bool` and numbers, which a student can be trained on. What an
    option is said to mean is added to its field's description. The likeliest option's probability is the confidence of
    a `Choice` or a `Score`. The generator gives the requests to be made and takes their responses.

    Args:
        asked: DSPy's decision request: `state` with the inputs and demos, and the `questions`.
    """
    state, decisions = asked["state"], DecisionState(predictor.signature, predictor.fields)
    signature = predictor.signature
    for name, kind in decisions.types.items():
        told = _told(signature.output_fields[name], asked["questions"][name])
        signature = signature.with_updated_fields(name, type_=_plain(kind), **({"desc": told} if told else {}))
    found = yield from _ask(predictor, signature, state["inputs"], {}, lm, demos=state.get("demos"))
    answers: dict[str, Any] = {}
    for name, kind in decisions.types.items():
        probabilities = found[name]
        if issubclass(kind, Noul):
            answers[name] = {"noul": probabilities["True"]}
        else:
            answers[name] = {"probabilities": probabilities, "confidence": max(probabilities.values())}
    return answers


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
        return {str(member.name if isinstance(member, Enum) else member): member for member in get_args(annotation)}
    if isinstance(annotation, EnumMeta):
        return dict(annotation.__members__)
    return {"True": True, "False": False} if annotation is bool else {}
