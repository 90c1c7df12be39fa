"""What a command is given, read: `module.py:name` references, JSONL examples, JSON objects, model names."""

import difflib
import hashlib
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DataError, DspycError
from ..training.formats import read_objects

if TYPE_CHECKING:
    import dspy

_REFERENCE = re.compile(r"(?P<module>.+\.py|[A-Za-z_][\w.]*):(?P<name>[A-Za-z_]\w*)")
_FORM = "A reference is module.py:name or package.module:name."


def is_reference(text: str) -> bool:
    """Whether `text` names something in a module, as `desk.py:program` does; `openai/gpt-5-mini` does not."""
    return _REFERENCE.fullmatch(text) is not None


def load_reference(reference: str) -> Any:
    """The object that `module.py:name` or `package.module:name` names.

    Raises:
        ConfigError: The reference has another form, its module cannot be imported, or has no such name.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise ConfigError(f"{reference!r} is not a reference.", hint=_FORM)
    module, name = _module(match["module"]), match["name"]
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        near = difflib.get_close_matches(name, public, n=3, cutoff=0.4) or public[:8]
        raise ConfigError(f"{match['module']} has no {name!r}.", hint=f"It has: {', '.join(near) or 'nothing'}.")
    return getattr(module, name)


def load_program(reference: str) -> "dspy.Module":
    """A program: a `dspy.Module`, or a class or function without arguments that makes one.

    Raises:
        ConfigError: The reference cannot be followed, or leads to something else.
    """
    import dspy

    made = _made(load_reference(reference), reference)
    if not isinstance(made, dspy.Module):
        raise ConfigError(
            f"{reference} is a {type(made).__name__}; a dspy.Module, or a class or function that makes one, is allowed."
        )
    return made


def load_metric(reference: str) -> Callable[..., Any]:
    """A metric: a function of (example, prediction, trace=None).

    Raises:
        ConfigError: The reference cannot be followed, or leads to something that cannot be called.
    """
    from ..evaluation import check_metric

    metric = load_reference(reference)
    check_metric(metric, reference)
    return metric  # type: ignore[no-any-return]


def load_student_lm(model: str, **settings: Any) -> "dspy.LM":
    """The LM that will be trained: a reference to one, a local folder, `dspyc/tiny`, a Hugging Face id, or a provider's model.

    Raises:
        ConfigError: A reference that leads to something other than an LM, or settings that DSPy refuses for the model.
        ModelError: No such model.
    """
    from dspy.utils.exceptions import LMConfigurationError

    from ..providers import LM, LocalLM
    from ..providers.catalog import provider_name

    if not is_reference(model):
        if provider_name(model) is None or Path(model).is_dir():
            return LocalLM(model, **settings)
        try:
            return LM(model, **settings)
        except LMConfigurationError as error:
            raise ConfigError(
                f"--student {model} cannot be had with {settings}: {error}", hint="Pass what it takes, by --max-tokens."
            ) from error
    found = load_lm_or_program(model)
    if not _is_lm(found):
        raise ConfigError(
            f"--student {model} is a {type(found).__name__}; a language model is allowed.",
            hint="Name a dspy.LM or a function that makes one. The program to compile is the first argument.",
        )
    return found


def load_teacher(model: str) -> Any:
    """An LM or a program: a reference to one, a local model, or a model name of DSPy's such as `openai/gpt-5-mini`.

    Raises:
        ConfigError: A reference that leads to something else.
        ModelError: No such folder.
    """
    if is_reference(model):
        return load_lm_or_program(model)
    if model == "dspyc/tiny" or Path(model).is_dir() or model.startswith((".", "/", "~")):
        from ..providers import LocalLM

        return LocalLM(model)
    import dspy

    return dspy.LM(model)


def load_lm_or_program(reference: str) -> Any:
    """The `dspy.LM` or `dspy.Module` that a reference leads to, or that the function there makes."""
    import dspy

    made = _made(load_reference(reference), reference)
    if not isinstance(made, (dspy.BaseLM, dspy.Module)):
        raise ConfigError(f"{reference} is a {type(made).__name__}; a language model or a dspy.Module is allowed.")
    return made


def read_records(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a JSONL file, one a line; empty lines are passed over.

    Raises:
        DataError: The file cannot be read, is empty, or a line is no JSON object; the message has its number.
    """
    return [record for _, record in read_objects(path)]


def as_examples(
    records: Sequence[dict[str, Any]], path: Path, inputs: Sequence[str], needed: Collection[str] = ()
) -> "list[dspy.Example]":
    """The records of the file `path` as examples with their inputs named; `needed` are those that have no default, if not all.

    Raises:
        DataError: A record lacks an input that it needs.
    """
    import dspy

    for number, record in enumerate(records, start=1):
        missing = [name for name in needed or inputs if name not in record]
        if missing:
            raise DataError(
                f"{path}, example {number} has no {', '.join(map(repr, missing))}; it has {sorted(record)}.",
                hint="Name the fields that the program takes with --inputs a,b, or mend the file.",
            )
    return [dspy.Example(**record).with_inputs(*(name for name in inputs if name in record)) for record in records]


def read_object(text: str, option: str) -> dict[str, Any]:
    """The JSON object that an option holds.

    Raises:
        ConfigError: It is not one.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(
            f"{option} is not JSON: {error}.", hint=f"""Quote it for the shell: {option} '{{"name": "value"}}'."""
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"{option} is a JSON {type(found).__name__}; an object is allowed.")
    return found


def _made(found: Any, reference: str) -> Any:
    """Classes and functions are called; programs and LMs, which can be called as well, are what was asked for."""
    import dspy

    if isinstance(found, (dspy.Module, dspy.BaseLM)) or not callable(found):
        return found
    try:
        return found()
    except DspycError:
        raise
    except Exception as error:  # whatever the user's own function raises
        raise ConfigError(
            f"Calling {reference} without arguments failed: {type(error).__name__}: {error}",
            hint="Name a program, or a function without arguments that makes one; `dspyc --debug …` shows where it failed.",
        ) from error


def _is_lm(found: Any) -> bool:
    import dspy

    return isinstance(found, dspy.BaseLM)


def _module(name: str) -> ModuleType:
    try:
        return _from_file(Path(name)) if name.endswith(".py") else _from_path(name)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's own module raises when it is run
        raise ConfigError(
            f"Importing {name} failed: {type(error).__name__}: {error}",
            hint="Run `dspyc --debug …` to see where.",
        ) from error


def _from_path(name: str) -> ModuleType:
    """An importable module, the current folder included, as for `python -m`."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(f"There is no module {name!r}.", hint=f"{_FORM} A file's name ends in .py.") from error
        raise


def _from_file(path: Path) -> ModuleType:
    """The module in a file, run once. Its folder becomes importable, so that it can import its neighbours."""
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.", hint=_FORM)
    path = path.resolve()
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python module.", hint=_FORM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_name(path: Path) -> str:
    """The file's own name, unless another module has it; the same in every process, as a run's identity depends on it."""
    known = sys.modules.get(path.stem)
    if known is not None:
        taken_by = getattr(known, "__file__", None)
    else:
        spec = importlib.util.find_spec(path.stem)
        taken_by = spec.origin if spec is not None else str(path)
    if taken_by is not None and Path(taken_by).resolve() == path:
        return path.stem
    return f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
