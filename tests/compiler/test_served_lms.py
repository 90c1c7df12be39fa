"""Programs whose language model was on a server, saved and loaded."""

import sys
from collections.abc import Iterator
from pathlib import Path

import dspy
import pytest

import dspyc
from dspyc.compiler.prices import is_paid
from tests.models import small
from tests.models.running import Running


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    running = Running()
    yield running
    running.stop()


def test_a_model_known_by_its_address_is_asked_there_again(server: Running, tmp_path: Path) -> None:
    program = dspy.Predict("question -> answer")
    program.set_lm(dspyc.LocalLM("base", server=server.address, max_tokens=7, cache=False))
    dspyc.save(program, tmp_path / "saved")
    loaded = dspyc.load(tmp_path / "saved")
    assert loaded.lm.model == program.lm.model
    assert loaded(question="Why?").answer == "short and good"
    assert server.seen()["seen"][-1]["body"]["max_tokens"] == 7


def test_weights_that_were_served_are_saved_and_run_here(server: Running, tmp_path: Path) -> None:
    folder = small.llama(tmp_path / "llama")
    program = dspy.Predict("question -> answer")
    program.set_lm(dspyc.LocalLM(folder, server=server.address, max_tokens=7, cache=False))
    dspyc.save(program, tmp_path / "saved")
    loaded = dspyc.load(tmp_path / "saved")
    assert loaded.lm.model.startswith("local/")
    assert loaded.lm.engine.identity == program.lm.engine.identity
    assert loaded.lm.kwargs["max_tokens"] == 7


def test_a_server_that_this_program_starts_is_free_and_one_at_an_address_may_not_be(
    server: Running, tmp_path: Path
) -> None:
    folder = small.llama(tmp_path / "llama")
    child = dspyc.LocalLM(folder, server="vllm", server_options={"program": sys.executable})  # not started yet
    assert not is_paid(child)
    assert not is_paid(dspyc.LocalLM(folder))
    assert is_paid(dspyc.LocalLM("base", server=server.address))
    assert is_paid(dspy.LM("openai/gpt-5-mini"))
