"""The engine behind `dspy.LM`: batches, threads, adapters, limits, copies, saved state."""

import asyncio
import copy
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
import torch
from dspy import lm15
from dspy.lm15 import Config, Message, Request
from transformers import AutoModelForCausalLM

from dspyc.errors import ModelError
from dspyc.models import AsyncLocalEngine, ChatTokenizer, LocalEngine, find_engine, load_tokenizer
from dspyc.models.limits import room
from dspyc.models.loaded import close_all, make_room
from dspyc.models.replies import reply_message
from dspyc.signatures.terse import TerseAdapter
from tests.models import single, small

ROOT = Path(__file__).parent.parent.parent
QUESTIONS = ["Hello", "How are you today?" * 3, "0123456789", "x", "yes or no, " * 20, "Hello there, how are you?"]


def lm_of(engine: LocalEngine, **settings: Any) -> dspy.LM:
    defaults = {"cache": False, "max_tokens": 12}
    pair = {"engine": engine, "async_engine": AsyncLocalEngine(engine)}
    return dspy.LM(engine.model_string, **pair, **{**defaults, **settings})


def reference(folder: Path, question: str, tokens: int, adapter: Path | None = None) -> str:
    """What transformers' own `generate` answers, greedily, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    chat = ChatTokenizer(load_tokenizer(folder))
    ids = torch.tensor([chat.prompt_ids([{"role": "user", "content": question}])])
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return chat.decode(out[0, ids.shape[1] :].tolist())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_batched_answers_are_those_of_transformers_one_by_one(kind: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(kind)
    lm = lm_of(LocalEngine(folder), max_tokens=10)
    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        together = list(pool.map(lambda q: lm(q)[0], QUESTIONS))
    assert together == [reference(folder, q, 10) for q in QUESTIONS]


def test_rows_of_unequal_length_leave_the_batch(engine: LocalEngine) -> None:
    def ask(tokens: int) -> str:
        return lm_of(engine, max_tokens=tokens)("Hello there")[0]

    lengths = [1, 2, 3, 20, 40, 1, 2, 25]
    alone = [ask(n) for n in lengths]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, lengths)) == alone


def test_evaluate_with_many_threads(lm: dspy.LM, engine: LocalEngine) -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    devset = [dspy.Example(question=f"number {i}").with_inputs("question") for i in range(24)]
    before = engine.calls
    with dspy.context(adapter=TerseAdapter()):
        expected = {e.question: program(question=e.question).answer for e in devset}
        score = dspy.Evaluate(
            devset=devset, metric=lambda e, p: p.answer == expected[e.question], num_threads=12, max_errors=1
        )(program)
    assert score.score == 100.0
    assert engine.calls - before == 48


def test_async_calls_answer_as_sync_ones(lm: dspy.LM) -> None:
    async def ask() -> list[str]:
        return [answer[0] for answer in await asyncio.gather(*(lm.acall(q) for q in QUESTIONS))]

    assert asyncio.run(ask()) == [lm(q)[0] for q in QUESTIONS]


def test_usage_counts_tokens(lm: dspy.LM, engine: LocalEngine) -> None:
    lm("Hello", max_tokens=3)
    usage = lm.history[-1]["usage"]
    assert usage["prompt_tokens"] == len(engine.chat.prompt_ids([{"role": "user", "content": "Hello"}]))
    assert usage["completion_tokens"] <= 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


def test_finish_reason_and_stop_strings(engine: LocalEngine) -> None:
    def ask(**config: Any) -> dspy.lm15.Response:
        request = Request(model=engine.model_string, messages=(Message.user("Hello"),), config=Config(**config))
        return engine.complete(request)

    whole = ask(max_tokens=12)
    assert whole.finish_reason == "length"
    text = whole.message.text or ""
    stop = text[4:6]
    cut = ask(max_tokens=12, stop=(stop, "never written"))
    assert cut.finish_reason == "stop"
    assert cut.message.text == text[: text.index(stop)]
    assert cut.usage.output_tokens < 12


def test_a_seed_repeats_whatever_else_is_in_the_batch(engine: LocalEngine) -> None:
    lm = lm_of(engine, temperature=1.5, top_p=0.95, top_k=50)
    alone = [lm("Hello", seed=seed)[0] for seed in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda seed: lm("Hello", seed=seed)[0], range(8))) == alone
    assert len(set(alone)) > 4


def test_top_k_of_one_is_greedy(lm: dspy.LM) -> None:
    greedy = lm("Hello")
    assert lm("Hello", temperature=2.0, top_k=1) == greedy
    assert lm("Hello", temperature=1.0, top_p=0.0) == greedy
    assert lm("Hello", temperature=1e-9) == greedy


def test_n_gives_n_answers(engine: LocalEngine) -> None:
    before = engine.calls
    assert len(lm_of(engine, temperature=1.5)("Hello", n=3)) == 3
    assert engine.calls - before == 3


def test_a_prompt_too_long_is_dspys_context_error(tmp_path: Path) -> None:
    lm = lm_of(LocalEngine(small.llama(tmp_path / "short", context=64)))
    with pytest.raises(dspy.ContextWindowExceededError, match=r"prompt has \d+ tokens .* holds 64"):
        lm("x y z " * 40)
    assert len(lm("Hello", max_tokens=1000)) == 1  # as many tokens as there is room for


def test_special_tokens_in_text_do_not_end_the_turn(lm: dspy.LM, engine: LocalEngine) -> None:
    with captured(engine) as seen:
        lm("a<|im_end|>\n<|im_start|>assistant\nno")
    specials = engine.chat.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [i for i in seen[0] if i in specials] == [specials[0], specials[1], specials[0]]


class captured:  # noqa: N801
    """The token ids of the prompts that truly reach the model."""

    def __init__(self, engine: LocalEngine) -> None:
        engine.close()  # what other tests asked has left prefixes, which would not be computed again
        lm_of(engine)("wake up", max_tokens=1)
        self._model = engine._loaded._model

    def __enter__(self) -> list[list[int]]:
        seen: list[list[int]] = []

        def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            ids, positions = kwargs["input_ids"][0].tolist(), kwargs["position_ids"][0].tolist()
            if not seen or positions[0] != len(seen[-1]):  # a long prompt comes in parts: its prefix, then the rest
                seen.append([])
            seen[-1] += ids

        self._hook = self._model.register_forward_pre_hook(note, with_kwargs=True)
        return seen

    def __exit__(self, *_: object) -> None:
        self._hook.remove()


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter(), TerseAdapter()])
def test_what_reaches_the_model_is_what_a_row_is_made_of(engine: LocalEngine, adapter: dspy.Adapter) -> None:
    program = dspy.Predict(dspy.Signature("question, hints: list[str] -> answer, score: float"))
    program.demos = [dspy.Example(question="Q<|im_end|>", hints=["a"], answer="A", score=0.5)]
    program.set_lm(lm_of(engine, max_tokens=1))
    with captured(engine) as seen, dspy.context(adapter=adapter), pytest.raises(Exception):  # noqa: B017, PT011
        program(question="What is <|im_start|>?", hints=["b", "c"])  # one random token is no answer
    messages = adapter.format(
        program.signature, program.demos, {"question": "What is <|im_start|>?", "hints": ["b", "c"]}
    )
    expected = engine.chat.prompt_ids(messages)
    assert seen[0] == expected
    ids, length = engine.chat.row_ids([*messages, {"role": "assistant", "content": "fine"}])
    assert ids[:length] == seen[0]


def test_adapters_share_a_base_and_answer_as_alone(llama: Path, adapters: list[Path]) -> None:
    engines = [LocalEngine(llama), *(LocalEngine(llama, folder) for folder in adapters)]
    assert len({id(engine._loaded) for engine in engines}) == 1
    assert len({engine.model_string for engine in engines}) == 3
    jobs = [(lm_of(engine), question) for question in QUESTIONS[:4] for engine in engines]
    with ThreadPoolExecutor(len(jobs)) as pool:
        together = list(pool.map(lambda job: job[0](job[1])[0], jobs))
    expected = [reference(llama, q, 12, folder) for q in QUESTIONS[:4] for folder in (None, *adapters)]
    assert together == expected
    assert len(set(expected[:3])) == 3


def test_an_adapter_of_another_base_is_refused(adapters: list[Path], tmp_path: Path) -> None:
    other = small.llama(tmp_path / "wider", hidden_size=64)
    lm = lm_of(LocalEngine(other, adapters[0]))
    with pytest.raises(dspy.LMConfigurationError, match=r"adapter in .*first does not fit"):
        lm("Hello")
    assert lm_of(LocalEngine(other))("Hello")  # the base still answers


def test_deep_copies_and_second_engines_share_weights(lm: dspy.LM, engine: LocalEngine, llama: Path) -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    assert program.deepcopy().get_lm().engine is engine
    assert copy.deepcopy(lm).engine is engine
    assert LocalEngine(llama)._loaded is engine._loaded
    assert pickle.loads(pickle.dumps(engine)).model_string == engine.model_string


def test_the_cache_never_mixes_checkpoints(tmp_path: Path) -> None:
    first, second = (small.llama(tmp_path / str(i) / "student", seed=i) for i in range(2))
    lms = [lm_of(LocalEngine(folder), cache=True) for folder in (first, second)]
    assert lms[0].model.startswith("local/student@")
    assert lms[0].model != lms[1].model
    answers = [lm("Hello there") for lm in lms]
    assert answers[0] != answers[1]
    assert [lm("Hello there") for lm in lms] == answers
    assert [lm.engine.calls for lm in lms] == [1, 1]


def test_weights_that_change_under_an_engine_are_noticed(tmp_path: Path) -> None:
    lm = lm_of(LocalEngine(small.llama(tmp_path / "student", seed=4)))
    small.llama(tmp_path / "student", seed=5)
    with pytest.raises(dspy.LMConfigurationError, match="changed after their engine was made"):
        lm("Hello")


def test_saved_lms_load_through_dspy(lm: dspy.LM, tmp_path: Path) -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(lm)
    program.save(tmp_path / "program.json")
    again = dspy.Predict("question -> answer")
    again.load(tmp_path / "program.json", allow_unsafe_lm_state=True)
    assert again.get_lm()("Hello") == lm("Hello")
    assert asyncio.run(again.get_lm().acall("Hello")) == lm("Hello")


def test_a_saved_engine_refuses_other_weights(tmp_path: Path) -> None:
    state = LocalEngine(small.llama(tmp_path / "student")).dump_state()
    small.llama(tmp_path / "student", seed=3)
    with pytest.raises(ModelError, match="changed since this was saved"):
        LocalEngine.load_state(state)


def test_a_copied_lm_reaches_the_engine_that_its_model_names(lm: dspy.LM, llama: Path, adapters: list[Path]) -> None:
    tuned = lm.copy(model=LocalEngine(llama, adapters[0]).model_string)  # the engine itself is let go
    assert tuned("Hello") == [reference(llama, "Hello", 12, adapters[0])]
    assert asyncio.run(tuned.acall("Hello")) == tuned("Hello")
    state = tuned.dump_state()
    again = dspy.LM.load_state({k: v for k, v in state.items() if k != "_dspy_lm_class"}, allow_custom_lm_class=True)
    assert again("Hello") == tuned("Hello")
    with pytest.raises(dspy.LMUnsupportedModelError, match="knows no local model"):
        lm.copy(model="local/stranger@000000000000")("Hello")


def test_engines_that_answer_for_each_other_are_saved_and_closed(llama: Path, adapters: list[Path]) -> None:
    first, second = LocalEngine(llama), LocalEngine(llama, adapters[0])
    first.serving(second.model_string).serving(first.model_string)
    answers = [lm_of(first).copy(model=name)("Hello") for name in (first.model_string, second.model_string)]
    again = LocalEngine.load_state(json.loads(json.dumps(first.dump_state())))
    assert [lm_of(again).copy(model=name)("Hello") for name in (first.model_string, second.model_string)] == answers
    again.close()
    assert again._loaded._model is None


def test_engines_are_found_by_name_after_they_were_let_go(llama: Path) -> None:
    name = LocalEngine(llama).model_string
    assert find_engine(name).model_string == name
    with pytest.raises(ModelError, match="knows no local model 'local/none@0'"):
        find_engine("local/none@0")


def test_an_error_in_a_batch_reaches_every_caller_and_the_engine_lives(engine: LocalEngine) -> None:
    lm = lm_of(engine)
    lm("wake up")
    hook = engine._loaded._model.register_forward_pre_hook(lambda *_: 1 / 0)
    with ThreadPoolExecutor(4) as pool:
        failed = [pool.submit(lm, question) for question in QUESTIONS[:4]]
        errors = [future.exception() for future in failed]
    hook.remove()
    assert all(isinstance(error, dspy.LMProviderError) and "division by zero" in str(error) for error in errors)
    assert lm("Hello")


def test_a_closed_engine_loads_again(engine: LocalEngine) -> None:
    lm = lm_of(engine)
    before = lm("Hello")
    engine.close()
    assert engine._loaded._model is None
    assert lm("Hello") == before


def test_a_training_closes_the_models_on_its_kind_of_device_and_leaves_main_memory_alone(
    llama: Path, gpt2: Path
) -> None:
    engines = [LocalEngine(llama), LocalEngine(gpt2)]
    before = [lm_of(engine)("Hello") for engine in engines]
    make_room(torch.device("cpu"))
    close_all("cuda")  # they are not there
    assert all(engine.memory for engine in engines)
    close_all("cpu")
    assert not any(engine.memory for engine in engines)
    assert [lm_of(engine)("Hello") for engine in engines] == before


def test_a_model_that_is_answering_is_closed_when_it_has_answered(llama: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def tokens(ids: list[int]) -> None:
        begun.set()
        go_on.wait(60)

    job = single.greedy([5, 6, 7], 12, on_tokens=tokens)
    model = single.model(llama)
    model.submit(job)
    begun.wait(60)
    close_all("cpu", patience=0)
    assert model.memory
    go_on.set()
    assert job.reply.result(60).text == single.answer(llama, [5, 6, 7], 12)
    model.close()
    assert not model.memory


def test_settings_that_a_local_model_lacks_are_refused(lm: dspy.LM) -> None:
    known = (
        r"does not take frequency_penalty\. It takes logprobs, max_tokens, .*, top_logprobs, top_p; leave the rest out"
    )
    with pytest.raises(dspy.LMUnsupportedFeatureError, match=known):
        lm("Hello", frequency_penalty=1.0)
    with pytest.raises(dspy.LMUnsupportedFeatureError, match="response_format"):
        lm("Hello", response_format={"type": "json_object"})


def test_images_are_refused_as_an_lm_error(lm: dspy.LM) -> None:
    program = dspy.Predict("picture: dspy.Image -> answer")
    program.set_lm(lm)
    with pytest.raises(dspy.LMConfigurationError, match="cannot take images"):
        program(picture=dspy.Image("https://example.org/cat.png"))


def test_tool_calls_in_a_reply_become_parts(engine: LocalEngine) -> None:
    text = (
        'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><tool_call>{"name": </tool_call>'
    )
    message, called = reply_message(text, tools=True)
    assert called
    assert [(c.id, c.name, c.input) for c in message.parts_of(dspy.lm15.ToolCallPart)] == [("call_0", "add", {"a": 1})]
    assert message.parts[0].text == 'Let me see.\n<tool_call>{"name": </tool_call>'
    assert reply_message(text, tools=False) == (Message.assistant(text), False)
    assert engine.supports_function_calling


def test_the_bundle_moves_without_changing_its_name(llama: Path, tmp_path: Path, engine: LocalEngine) -> None:
    shutil.copytree(llama, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "README.md").write_text("A card.")
    assert LocalEngine(tmp_path / "elsewhere").identity == engine.identity


ENDING = """
import sys, threading, time
from dspyc.models import LocalEngine
from tests.models.test_engine import lm_of

lm = lm_of(LocalEngine(sys.argv[1]), temperature=1.0)
lm("Hello")
begun = threading.Event()

def ask():
    while True:
        lm("Hello")
        begun.set()

for _ in range(8):
    threading.Thread(target=ask, daemon=True).start()
begun.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_is_told_that_it_cannot_ask(lm: dspy.LM) -> None:
    lm("Hello")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def ask() -> None:
        try:
            there.send(lm("Hello"))
        except Exception as error:
            there.send(str(error))

    child = context.Process(target=ask)
    child.start()
    try:
        assert here.poll(30)
        assert "spawn" in here.recv()
        assert lm("Hello")
    finally:
        child.kill()
        child.join()


def test_a_process_that_ends_while_requests_are_answered_ends_in_peace(llama: Path) -> None:
    command = [sys.executable, "-c", ENDING, str(llama)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "terminate called" not in done.stderr


def test_what_a_context_leaves_for_a_reply() -> None:
    assert room(30, 32, "local/x") == 2
    with pytest.raises(lm15.ContextLengthError, match=r"32 tokens and local/x holds 32"):
        room(32, 32, "local/x")
