"""A secret, from wherever it comes, is in no log, file, exception or object that leaves the process."""

import logging
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from dspy.clients.utils_finetune import TrainDataFormat

import dspyc
from dspyc.errors import ProviderError

from .compiling import compile_program
from .everyone import EVERYONE, ROWS, Case
from .http_server import HttpServer

CANARY = HttpServer.key  # in the shape of no provider's keys, so that shapes alone do not find it
ARGUMENTS = {
    "openai": ("api_key",),
    "azure": ("api_key",),
    "bedrock": ("aws_access_key_id", "aws_secret_access_key", "aws_session_token"),
    "databricks": ("api_key",),
    "together": ("api_key",),
    "fireworks": ("api_key",),
}


def check_nowhere(
    case: Case, server: HttpServer, settings: dict[str, Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A compile, its artifact, and refusals that hold what was sent; then every trace of them is read."""
    kwargs = {**case.train_kwargs, **({"aws_profile": "tuner"} if "aws_profile_name" in settings else {})}
    settings = {**case.lm_settings(server), **settings}
    with caplog.at_level(logging.DEBUG):
        compiled = compile_program(case.model, settings, kwargs, str(folder / "run"))
        compiled.save(folder / "artifact")
        lm = dspyc.LM(case.model, **settings)
        said = [repr(lm.provider), repr(lm), repr(compiled), str(compiled.report), str(pickle.dumps(lm.provider))]
        for more, server.key in enumerate(
            (f"{CANARY}-another", CANARY), start=1
        ):  # the first refusal repeats what was borne
            server.fail(case.create, 403)
            with pytest.raises(ProviderError) as caught:
                lm.finetune([*ROWS, *ROWS[:more]], TrainDataFormat.CHAT, kwargs)
            said.append("".join(traceback.format_exception(caught.value)))
            said.append(repr(vars(caught.value)))
            assert caught.value.__cause__ is None
            assert caught.value.__context__ is None
    assert caplog.records
    assert CANARY not in caplog.text
    assert not any(CANARY in text for text in said)
    written = {path for path in folder.rglob("*") if path.is_file() and path.parent != folder}
    assert {"run", "artifact", "home"} <= {path.relative_to(folder).parts[0] for path in written}
    assert [path for path in written if CANARY.encode() in path.read_bytes()] == []


SOURCES = [
    *((case, "environment") for case in EVERYONE),
    *((case, "argument") for case in EVERYONE if case.name in ARGUMENTS),
    *((case, "file") for case in EVERYONE if case.name in ("bedrock", "databricks")),
]


@pytest.mark.parametrize(("case", "source"), SOURCES, ids=lambda part: str(part))
def test_a_secret_is_nowhere(
    case: Case, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {}
    with case.server(polls=0) as server:
        server.key = CANARY
        case.sign_in(server, tmp_path, monkeypatch)
        if source != "environment":
            for name, value in case.environment.items():
                if "{key}" in value:
                    monkeypatch.delenv(name)
        if source == "argument":
            names = ARGUMENTS[case.name]
            settings = {name: f"{CANARY}-{name}" if name.startswith("aws") else CANARY for name in names}
        elif source == "file" and case.name == "bedrock":
            lines = (f"{name} = {CANARY}-{name}" for name in ARGUMENTS[case.name])
            (tmp_path / "credentials").write_text("\n".join(["[tuner]", *lines]))
            settings = {"aws_profile_name": "tuner"}
        elif source == "file":
            (tmp_path / "databrickscfg").write_text(f"[DEFAULT]\nhost = {server.url}\ntoken = {CANARY}\n")
            monkeypatch.delenv("DATABRICKS_HOST")  # told a host, the SDK reads no file
        check_nowhere(case, server, settings, tmp_path, caplog)
