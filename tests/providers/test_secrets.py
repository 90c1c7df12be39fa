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
from .everyone import EVERYONE, ROWS, Case, every_provider
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
        server.key = f"{CANARY}-another"
        for moment, request in (("upload", case.upload), ("create", case.create)):
            server.fail(request, 403, code="")
            server.fail(request, 400, code="")
            with pytest.raises(ProviderError) as caught:
                lm.finetune([*ROWS, *ROWS[: len(moment)]], TrainDataFormat.CHAT, kwargs)
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


@every_provider
def test_in_the_environment(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with case.server(polls=0) as server:
        server.key = CANARY
        case.sign_in(server, tmp_path, monkeypatch)
        check_nowhere(case, server, {}, tmp_path, caplog)


@pytest.mark.parametrize("case", [case for case in EVERYONE if case.name in ARGUMENTS], ids=str)
def test_given_to_the_lm(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with case.server(polls=0) as server:
        server.key = CANARY
        case.sign_in(server, tmp_path, monkeypatch)
        for name, value in case.environment.items():
            if "{key}" in value:
                monkeypatch.delenv(name)
        given = {
            name: f"{server.key}-{name}" if name.startswith("aws") else server.key for name in ARGUMENTS[case.name]
        }
        check_nowhere(case, server, given, tmp_path, caplog)


@pytest.mark.parametrize("case", [case for case in EVERYONE if case.name in ("bedrock", "databricks")], ids=str)
def test_in_the_sdks_own_file(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with case.server(polls=0) as server:
        server.key = CANARY
        case.sign_in(server, tmp_path, monkeypatch)
        for name, value in case.environment.items():
            if "{key}" in value or name == "DATABRICKS_HOST":  # with a host, the SDK reads no file
                monkeypatch.delenv(name)
        names = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
        profile = "\n".join(["[tuner]", *(f"{name} = {CANARY}-{name}" for name in names)])
        (tmp_path / "credentials").write_text(profile)
        (tmp_path / "databrickscfg").write_text(f"[DEFAULT]\nhost = {server.url}\ntoken = {CANARY}\n")
        check_nowhere(case, server, {"aws_profile_name": "tuner"} if case.name == "bedrock" else {}, tmp_path, caplog)
