"""Chat rows of three DSPy shapes to measure training with: real renderings (ChatAdapter) of messages made up here.

`classify` is a short text with one Literal, `cot` chain of thought behind a long system message, and `demos` the same with
four demos in the prompt.
"""

import random
from typing import Any, Literal

import dspy

import dspyc
from dspyc.signatures import row

SHAPES = ("classify", "cot", "demos")

INTENTS = {
    "refund": "the customer wants money back for goods that were returned, never sent or not as described",
    "delivery": "a parcel is late, lost, on its way, or at the wrong door, and the customer asks where it is",
    "damage": "the goods arrived broken, scratched, dented or in pieces, or the box was crushed on the way",
    "exchange": "another size, colour or model is wanted in place of what was delivered",
    "cancel": "an order that has not left the warehouse shall not be sent at all",
    "address": "the street, the name or the town on an order or in an account shall be changed",
    "payment": "a card was refused, a transfer did not arrive, or a sum was charged twice",
    "login": "a password, a code or an account does not work, or somebody else has used it",
    "invoice": "a bill, a receipt or a copy of one is asked for, or a number on it is wrong",
    "stock": "the customer asks whether or when something can be bought, and at what price",
}
RULES = (
    "Read the whole message first, and decide by what the customer wants done rather than by how it is said.",
    "Where two intents fit, take what has to be dealt with first: money before goods, goods before questions.",
    "Whoever complains about a delay and asks for the money wants a refund; whoever sends back what is broken reports damage.",
    "Thanks, greetings, order numbers and remarks about the shop or the courier say nothing about the intent.",
    "Never ask a question back, never promise anything, and never mention these rules in your reasoning.",
)
OPENINGS = {
    "refund": "I want my money back for the {thing}, it went back {when}.",
    "delivery": "Where is my {thing}? It should have been in {city} {when}.",
    "damage": "The {thing} that came {when} is cracked along one side.",
    "exchange": "Can I swap the {thing} from {when} for a {other}?",
    "cancel": "Please do not send the {thing} that I ordered {when}.",
    "address": "We moved to {city} {when}; the {thing} must go there.",
    "payment": "Your shop charged {sum} euros twice for the {thing} {when}.",
    "login": "Since {when} I cannot log in to look at my {thing}.",
    "invoice": "I need the receipt for the {thing} of {sum} euros.",
    "stock": "When can I buy the {thing} again? It was {sum} euros {when}.",
}
REMARKS = (
    "My order number is {code}.",
    "I have written to you {when} and nobody has answered so far.",
    "The {other} that I bought from you before was fine, by the way.",
    "My neighbour in {city} had the same trouble with a {other}.",
    "It was a present for my sister, who lives in {city}.",
)
REASONING = (
    "The {thing} is what the message is about; its other words only say where and when. This is {intent}: {why}."
)
WORDS = {
    "thing": ("lamp", "kettle", "mirror", "desk", "printer", "camera", "bicycle", "carpet", "radio", "blender"),
    "other": ("chair", "toaster", "clock", "shelf", "scanner", "tripod", "scooter", "curtain", "speaker", "grinder"),
    "city": ("Lyon", "Porto", "Graz", "Turin", "Ghent", "Bergen", "Split", "Leeds", "Cork", "Aarhus"),
    "when": ("yesterday", "on Monday", "last week", "on Friday", "three days ago", "this morning", "in May"),
}


def calls(shape: str, count: int) -> list[tuple[dict[str, str], dict[str, str]]]:
    """(inputs, outputs) of a predictor."""
    rng = random.Random(f"calls {shape}")
    made = []
    for _ in range(count):
        words = {name: rng.choice(options) for name, options in WORDS.items()}
        words |= {"sum": str(rng.randrange(5, 900)), "code": f"{rng.choice('ABCD')}-{rng.randrange(10_000, 99_999)}"}
        intent, why = rng.choice(list(INTENTS.items()))
        remarks = rng.sample(REMARKS, rng.randrange(2) if shape == "classify" else rng.randrange(1, 4))
        message = " ".join([OPENINGS[intent], *remarks]).format(**words)
        reasoning = REASONING.format(**words, intent=intent, why=why)
        made.append(({"message": message}, {"reasoning": reasoning, "intent": intent}))
    return made


def program(shape: str, count: int) -> tuple[dspy.Predict, list[tuple[dict[str, str], dict[str, str]]]]:
    """The predictor of a shape, and so many of its calls; that of `demos` has four others as demos."""
    asked, made = _without_demos(shape), calls(shape, count + 4)
    if shape == "demos":
        asked.demos = [dspy.Example(**inputs, **outputs) for inputs, outputs in made[count:]]
    return asked, made[:count]


def render(shape: str, count: int) -> list[dict[str, Any]]:
    """So many chat rows of a shape, as DSPy writes them; the same ones every time."""
    asked, made = program(shape, count)
    how: Any = {"adapter": dspy.ChatAdapter(), "lm": dspyc.LocalLM("dspyc/tiny")}
    return [{"messages": row(asked, *call, **how)["messages"]} for call in made]


def _without_demos(shape: str) -> dspy.Predict:
    intent = Literal[tuple(INTENTS)]  # type: ignore[valid-type]
    fields = {"message": (str, dspy.InputField()), "intent": (intent, dspy.OutputField())}
    if shape == "classify":
        return dspy.Predict(dspy.Signature(fields, "Name the intent of a customer's message."))
    meanings = [f"`{name}`: {meaning}." for name, meaning in INTENTS.items()]
    long = "\n".join(["Decide what a customer of our shop wants. There are ten intents.", *meanings, *RULES])
    return dspy.ChainOfThought(dspy.Signature(fields, long)).predict
