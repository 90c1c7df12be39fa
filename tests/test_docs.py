"""What README.md and docs/ show: Python whose names and arguments exist, shell lines that the command takes, links that lead
somewhere."""

import ast
import inspect
import re
import shlex
import typing
from pathlib import Path
from typing import Any

import dspy
import pytest
import typer

import dspyc
from dspyc.providers import RemoteJob

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = [ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "benchmarks/README.md")]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text()) if language in languages]


def inline(page: Path) -> list[str]:
    return INLINE.findall(BLOCK.sub("", page.read_text()))


class Of:
    """Some object of a class."""

    def __init__(self, kind: type) -> None:
        self.kind = kind


class Compiled(dspy.Module):
    """What `compile` returns has this too."""

    report: dspyc.CompileReport


class Reading:
    """Python that is read and not run: what its names mean, where that is something of dspyc."""

    def __init__(self) -> None:
        known = {"optimizer": dspyc.BootstrapFinetune, "compiled": Compiled, "job": RemoteJob}
        self.names: dict[str, Any] = {"dspyc": dspyc, **{name: Of(kind) for name, kind in known.items()}}

    def read(self, text: str) -> None:
        tree = ast.parse(text)
        compile(tree, text, "exec")
        for statement in tree.body:
            for node in ast.walk(statement):
                if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "dspyc":
                    for alias in node.names:
                        module = __import__(str(node.module), fromlist=[alias.name])
                        self.names[alias.asname or alias.name] = getattr(module, alias.name)
                elif isinstance(node, ast.expr):
                    self.meaning(node)
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                found = self.meaning(statement.value)
                if found is not None:
                    self.names[statement.targets[0].id] = found

    def meaning(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self.meaning(node.value)
            if owner is None:
                return None
            if isinstance(owner, Of):
                return self.member(owner.kind, node.attr)
            return getattr(owner, node.attr)
        if isinstance(node, ast.Call):
            return self.called(node)
        return None

    def member(self, kind: type, name: str) -> Any:
        if name in (hints := typing.get_type_hints(kind)):
            return self.instance(hints[name])
        found = getattr(kind, name, None)
        if isinstance(found, property):
            return self.instance(typing.get_type_hints(found.fget).get("return"))
        assert found is not None or f"self.{name} = " in inspect.getsource(kind), f"{kind.__name__} has no {name}"
        return None if found is None else found.__get__(object.__new__(kind))

    def called(self, node: ast.Call) -> Any:
        found = self.meaning(node.func)
        if not callable(found):
            return None
        given = [a for a in node.args if not (isinstance(a, ast.Constant) and a.value is ...)]
        signature = inspect.signature(found)
        bind = signature.bind if given == node.args else signature.bind_partial
        try:
            bound = bind(*given, **{word.arg: word.value for word in node.keywords if word.arg})
        except TypeError as error:
            raise AssertionError(f"{ast.unparse(node)}: {error}") from None
        assert "unknown" not in bound.arguments, ast.unparse(node)  # compile(**unknown) takes them to say what it takes
        return self.instance(found if isinstance(found, type) else typing.get_type_hints(found).get("return"))

    def instance(self, kind: Any) -> Any:
        return Of(kind) if isinstance(kind, type) and kind.__module__.startswith("dspyc") else None


@every_page
def test_python_names_what_there_is_and_gives_what_it_takes(page: Path) -> None:
    reading = Reading()
    for block in blocks(page, "python"):
        reading.read(block)
    for text in inline(page):
        if re.match(r"dspyc(\.\w+)+(\(.*\))?$|from dspyc", text):
            reading.read(text.replace("…", "..."))


def test_a_block_that_is_wrong_is_found() -> None:
    wrong = [
        ("dspyc.Nothing", AttributeError),
        ("from dspyc.training import nothing", AttributeError),
        ("dspyc.BootstrapFinetune(exact, nothing=1)", AssertionError),
        ("optimizer.compile(program, trainset=train, nothing=1)", AssertionError),
        ("optimizer.plan(program, trainset=train).nothing()", AssertionError),
        ("o = dspyc.KNNFewShot(4)\no.compile()", AssertionError),
        ("compiled.report.nothing", AssertionError),
        ("job.nothing()", AssertionError),
        ("def f(:", SyntaxError),
    ]
    for text, error in wrong:
        with pytest.raises(error):
            Reading().read(text)


def check_shell(line: str) -> None:
    """That the command which the first words name has the options behind them."""
    found: Any = typer.main.get_command(dspyc.cli.app)
    words = shlex.split(line, comments=True)[1:]
    while hasattr(found, "commands") and words and not words[0].startswith("-"):
        found = found.commands[words.pop(0)]
    known = {name for parameter in found.params for name in (*parameter.opts, *parameter.secondary_opts)}
    options = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert options <= {*known, "--help"}, line


@every_page
def test_the_command_takes_what_shell_lines_say(page: Path) -> None:
    shown = [line.removeprefix("$ ") for block in blocks(page, "bash", "") for line in block.splitlines()]
    for line in (*shown, *inline(page)):
        if line.startswith("dspyc "):
            check_shell(line)


def test_a_shell_line_that_is_wrong_is_found() -> None:
    with pytest.raises(AssertionError):
        check_shell("dspyc compile desk.py:program --nothing 3")
    with pytest.raises(KeyError):
        check_shell("dspyc jobs nothing")


def anchors(page: Path) -> set[str]:
    """The names that GitHub gives to headings."""
    text = BLOCK.sub("", page.read_text())
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *OTHERS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(BLOCK.sub("", page.read_text())):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name) if name else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


def test_the_architecture_names_files_that_there_are() -> None:
    files = [
        f"/{path.relative_to(ROOT)}" for top in ("dspyc", "tests", "examples") for path in (ROOT / top).rglob("*.py")
    ]
    named = [text for text in inline(ROOT / "ARCHITECTURE.md") if re.fullmatch(r"[\w/]+\.py", text)]
    assert [name for name in named if not any(file.endswith(f"/{name}") for file in files)] == []
