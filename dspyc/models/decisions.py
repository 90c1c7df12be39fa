"""What a local model thinks of each option of a choice, as confidence for gates and for abstention.

    dspyc.choice_probabilities(predictor, ticket="Where is my parcel?")
    {"intent": {"delivery": 0.93, "refund": 0.05, "other": 0.02}}

These are the model's own probabilities (`models.choices`), not numbers that it wrote. Outputs of DSPy's decision types
(`Choice`, `Noul`, `Score`) get them without asking: see `Evidence`.
"""

import json
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, EnumMeta
from functools import lru_cache
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args, get_origin

import dspy
from dspy import lm15
from dspy.adapters.decision_state import DecisionState
from dspy.adapters.types.decision import Choice, Noul, Score

from ..errors import ConfigError
from ..signatures.adapted import adapt, adapter_of
from ..signatures.asked import Asked, Retyping, plain_choice, retyped
from ..signatures.grammar import written_value
from ..signatures.render import prompt
from .candidates import CandidatesLM
from .choices import Choices

T = TypeVar("T")
Asking: TypeAlias = Generator[
    lm15.Request, lm15.Response, T
]  # gives out requests to be made, and takes their responses


def choice_probabilities(predictor: dspy.Predict | dspy.ChainOfThought, **inputs: Any) -> dict[str, dict[Any, float]]:
    """The probability of every option of `predictor`'s choices: its outputs that are a `Literal`, an `Enum` or a bool.

    DSPy's decision types are choices too, asked as such: `Choice` of its options, `Noul` of a bool, `Score` of its levels'
    numbers. Each choice is scored after the outputs before it. If such an output is not a choice, such as the reasoning of
    `dspy.ChainOfThought`, the predictor is called first and its answer stands there; otherwise the likeliest options
    stand there. The probabilities of a choice add up to 1.

    Args:
        predictor: A `dspy.Predict` or `dspy.ChainOfThought` on a `dspyc.LocalLM`, with ChatAdapter, JSONAdapter or
            TerseAdapter.
        **inputs: As in a call of the predictor.

    Raises:
        ConfigError: The predictor has no choices, another kind of LM, or an adapter of another format.
    """
    predictor = _predictor_of(predictor)
    decisions = DecisionState(predictor.signature, predictor.fields)
    if decisions.types:
        nearest = getattr(predictor, "nearest", None)
        shown = predictor.demos if nearest is None else nearest.choose(predictor, inputs)
        predictor = _as_choices(predictor, decisions, shown)
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
    adapter = adapter_of(predictor)
    messages = prompt(predictor, inputs, adapter=adapter, lm=lm).messages
    found = answered(_ask(choices, messages, signature, known, adapter, lm), lm)
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


def _as_choices(predictor: dspy.Predict, decisions: DecisionState, demos: Sequence[Any]) -> dspy.Predict:
    """The predictor with plain choices in the place of its decisions, in `demos` too.

    Raises:
        ConfigError: A decision that DSPy cannot ask for either.
    """
    signature: Any = predictor.signature
    fields, types = signature.output_fields, decisions.types
    try:
        questions = {name: decisions._question(name, fields[name], kind) for name, kind in types.items()}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    plain = tuple(
        (name, plain_choice(kind), _told(name, fields[name], questions[name])) for name, kind in types.items()
    )
    twin = dspy.Predict(_as_plain(signature, plain), **predictor.config)
    twin.lm = predictor.lm
    twin.demos = [
        {**demo, **{name: _plain_value(demo[name], kind) for name, kind in types.items() if name in demo}}
        for demo in demos
    ]
    adapt(twin, adapter_of(predictor))
    return twin


@lru_cache(maxsize=256)
def _as_plain(signature: Any, plain: Retyping) -> Any:
    """The signature with plain choices, under its own name, which TerseAdapter sends."""
    made: Any = retyped(signature, plain)
    made.__name__ = signature.__name__
    for name, _, _ in plain:
        made.output_fields[name].metadata = []  # `Choice` beside a Literal makes it a decision
    return made


@dataclass(frozen=True)
class Evidence:
    """What DSPy asks of an LM where outputs are decisions: their probabilities, within a reply's text.

    Here the model does not write them. It is asked as if decisions were plain choices (options, yes or no, a score's
    levels by their numbers), with the prompt of a signature that a student can be trained on; what an option is said to
    mean, and a predictor's own instructions, are added to the field's description. It replies where there are other
    outputs to write, and behind that the options are scored. The likeliest option's probability is the confidence of a
    `Choice` or a `Score`.
    """

    messages: list[dict[str, Any]]  # the prompt of the plain signature
    signature: type[dspy.Signature]  # the plain one
    asked: Asked

    @classmethod
    def of(cls, asked: Asked, lm: Any) -> "Evidence | None":
        """The evidence that a request asks for.

        None if its signature has no decisions, or if the predictor's call cannot be found.
        """
        if not asked.decisions.types or asked.call is None:
            return None
        plain = _as_choices(asked.predictor, asked.decisions, asked.call["demos"])
        messages = prompt(plain, asked.call["kwargs"], adapter=asked.adapter, lm=lm).messages
        return cls(messages, plain.signature, asked)

    @property
    def replies(self) -> bool:
        """Whether there are other outputs to write."""
        return len(self.asked.decisions.types) < len(self.signature.output_fields)

    def text(self, reply: Any, lm: Any) -> Asking[str]:
        """The text that DSPy asked for, from a reply to `messages`."""
        known = dict(self.asked.adapter.parse(self.signature, _text(reply))) if self.replies else {}
        types = self.asked.decisions.types
        choices = {name: _options(self.signature, name) for name in types}
        found = yield from _ask(choices, self.messages, self.signature, known, self.asked.adapter, lm)
        for name, kind in types.items():
            if issubclass(kind, Noul):
                known[name] = {"noul": found[name]["True"]}
            else:
                known[name] = {"probabilities": found[name], "confidence": max(found[name].values())}
        return str(self.asked.adapter.format_assistant_message_content(self.asked.signature, known))

    @staticmethod
    def put(reply: Any, text: str) -> Any:
        """The reply, text or DSPy's dict of what came with it, with that text."""
        return {**reply, "text": text} if isinstance(reply, dict) else text


def _text(reply: Any) -> str:
    return str(reply["text"] if isinstance(reply, dict) else reply)


def _told(name: str, field: Any, question: Mapping[str, Any]) -> str | None:
    """The description of a field that is told more than it declares: what options mean, or instructions of the predictor's
    own; None for others."""
    declared = field.json_schema_extra["desc"]
    desc = "" if declared == f"${{{name}}}" else declared
    criteria, instructions = question.get("criteria"), question["instructions"]
    meanings = list(criteria.values()) if isinstance(criteria, dict) else criteria or []
    if not any(meanings) and instructions in (desc, None):
        return None
    return f"{desc}\n{json.dumps(question, ensure_ascii=False, indent=2)}"


def _plain_value(value: Any, kind: Any) -> Any:
    """A decision, as the plain choice's value. Demos that DSPy saved hold it as a dict."""
    told = dict(value) if isinstance(value, (Choice, Noul, Score, Mapping)) else {}
    if "value" not in told:
        return value
    if not issubclass(kind, Score):
        return told["value"]
    level = told.get("level")
    return round(told["value"]) if level is None else level


def _ask(
    choices: Mapping[str, dict[str, Any]],
    messages: list[dict[str, Any]],
    signature: type[dspy.Signature],
    known: Mapping[str, Any],
    adapter: dspy.Adapter,
    lm: Any,
) -> Asking[dict[str, dict[str, float]]]:
    """Asks for one choice after the other; what `known` does not say is the likeliest option from then on."""
    plain = lm15.request_from_openai_chat({"model": lm.model, "messages": messages})
    values = {**{name: next(iter(members.values())) for name, members in choices.items()}, **known}
    found: dict[str, dict[str, float]] = {}
    for name, members in choices.items():
        response = yield _choices(name, members, values, signature, adapter).request(plain)
        found[name] = (response.probabilities or {})[name]
        if name not in known:
            values[name] = members[max(found[name], key=lambda label: found[name][label])]
    return found


def answered(asking: Asking[T], ask: Callable[[lm15.Request], lm15.Response]) -> T:
    """What a generator of requests comes to, each answered by `ask`."""
    try:
        request = next(asking)
        while True:
            request = asking.send(ask(request))
    except StopIteration as over:
        return cast(T, over.value)


async def answered_later(asking: Asking[T], ask: Callable[[lm15.Request], Awaitable[lm15.Response]]) -> T:
    """As `answered`, each request awaited."""
    try:
        request = next(asking)
        while True:
            request = asking.send(await ask(request))
    except StopIteration as over:
        return cast(T, over.value)


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
