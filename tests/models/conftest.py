from pathlib import Path

import dspy
import pytest

from dspyc.models import AsyncLocalEngine, LocalEngine
from tests.models import small


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.gpt2(tmp_path_factory.mktemp("models") / "gpt2")


@pytest.fixture(scope="session")
def adapters(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [small.lora(llama, folder / name, seed=seed) for seed, name in enumerate(("first", "second"))]


@pytest.fixture
def engine(llama: Path) -> LocalEngine:
    return LocalEngine(llama)


@pytest.fixture
def lm(engine: LocalEngine) -> dspy.LM:
    return dspy.LM(
        engine.model_string, engine=engine, async_engine=AsyncLocalEngine(engine), cache=False, max_tokens=12
    )
