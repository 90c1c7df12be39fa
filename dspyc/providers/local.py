"""This machine as a provider: `LocalLM` to call a model here, `LocalProvider` to fine-tune one here."""

import json
import logging
import math
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from dspy import lm15
from dspy.clients.provider import Provider, TrainingJob
from dspy.clients.utils_finetune import TrainDataFormat, TrainingStatus

from ..errors import ConfigError, DataError, needing
from ..files import home
from ..signatures import fingerprint

if TYPE_CHECKING:
    from ..models.engine import LocalEngine
    from ..training import TrainingResult

logger = logging.getLogger(__name__)

_NEEDED = "LocalLM needs PyTorch, transformers, peft and accelerate, as the extra has them."
_GENERATION = ("max_tokens", "n", "rollout_id", "seed", "stop", "temperature", "top_k", "top_p")
_LM_SETTINGS = ("cache", "callbacks", "num_retries", "train_kwargs")
_VALIDATION_SHARE = 0.1
_FIRST_HELD_OUT = 10  # rows; fewer leave nothing to hold out


def LocalLM(  # noqa: N802 (reads as a class)
    model: str | Path,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    server: str | None = None,
    server_options: Mapping[str, Any] | None = None,
    constrained: bool = True,
    **generation: Any,
) -> dspy.LM:
    """A `dspy.LM` that runs on this machine and can be fine-tuned on it.

    Args:
        model: A folder in Hugging Face's layout, a hub id such as "Qwen/Qwen3-0.6B", or "dspyc/tiny".
        adapter: A folder with a LoRA adapter for `model`.
        device: "auto" (CUDA, then MPS, then CPU), "cpu", "cuda", "cuda:1" or "mps".
        dtype: "auto" (on CUDA bfloat16, or float16 where the GPU has none; float32 elsewhere; with `server` the server's
            own choice), "bfloat16", "float16" or "float32".
        server: "vllm", "sglang" or "transformers" starts that server as a child process, on the loopback only, and ends it
            with this program; an address such as "http://127.0.0.1:8000" asks one that runs. Such an LM is for calling:
            train without a server, and serve the result.
        server_options: How the server is started and asked: `args`, `program`, `start_timeout`, `request_timeout`,
            `api_key_env` (docs/servers.md).
        constrained: Whether replies to predictors follow their signatures (docs/local.md), so that each can be read; False
            leaves the model free. Servers are never constrained here.
        **generation: Defaults of every call: temperature (None or 0 is greedy), max_tokens, top_p, top_k, seed, stop, n;
            and `dspy.LM`'s cache, callbacks, num_retries, train_kwargs.

    Raises:
        ConfigError: A setting that a local model does not have, or a value that no call could have.
        ModelError: The model's files cannot be found or read.
    """
    _check_arguments(model, adapter, generation)
    _check_values(generation)
    _warn_idle(generation, greedy_by_default=server is None)
    if server is not None:
        return _served(model, adapter, server, device, dtype, server_options, generation)
    if server_options is not None:
        raise ConfigError("LocalLM has server_options and no server.", hint="Pass server='vllm', or leave them out.")
    return _here(model, adapter, device, dtype, constrained, generation)


def _served(
    model: str | Path,
    adapter: str | Path | None,
    server: str,
    device: str,
    dtype: str,
    options: Mapping[str, Any] | None,
    generation: dict[str, Any],
) -> dspy.LM:
    """An LM that asks a model server."""
    with needing("'dspyc[local]'", _NEEDED):
        from ..models.servers.async_engine import AsyncServerEngine
        from ..models.servers.engine import ServerEngine

    engine = ServerEngine(model, adapter, server=server, device=device, dtype=dtype, options=options)
    return dspy.LM(engine.model_string, engine=engine, async_engine=AsyncServerEngine(engine), **generation)


def _here(
    model: str | Path,
    adapter: str | Path | None,
    device: str,
    dtype: str,
    constrained: bool,
    generation: dict[str, Any],
) -> dspy.LM:
    """An LM that computes in this process, and can be fine-tuned."""
    with needing("'dspyc[local]'", _NEEDED):
        from ..models.async_engine import AsyncLocalEngine
        from ..models.candidates import CandidatesLM
        from ..models.constrained import ConstrainedLM
        from ..models.engine import LocalEngine

    engine = LocalEngine(model, adapter, device=device, dtype=dtype)
    kind = ConstrainedLM if constrained else CandidatesLM
    return kind(
        engine.model_string,
        engine=engine,
        async_engine=AsyncLocalEngine(engine),
        provider=LocalProvider(),
        **generation,
    )


class LocalTrainingJob(TrainingJob):
    """A fine-tuning run in a thread of this process. As in DSPy, a failed run *returns* its error from `result()`."""

    def status(self) -> TrainingStatus:
        """Where the run stands, in DSPy's words."""
        if self.cancelled():
            return TrainingStatus.cancelled
        if self.done():
            failed = self.exception() is not None or isinstance(self.result(), Exception)
            return TrainingStatus.failed if failed else TrainingStatus.succeeded
        return TrainingStatus.running if self.running() else TrainingStatus.not_started

    def cancel(self) -> bool:
        """Give up the job. True if it had not begun to train; a run that has begun goes on, and the answer is False."""
        return Future.cancel(self)  # DSPy's own returns None


class LocalProvider(Provider):
    """DSPy's provider protocol over `dspyc.training`: `lm.finetune(rows, TrainDataFormat.CHAT, train_kwargs)`.

    `train_kwargs` are those of `dspyc.TrainingConfig`, and `output_dir`: where the weights go (a folder named after the
    content of the run, under DSPYC_HOME or ~/.cache/dspyc, unless given), `validation_fraction`: the share of the rows that
    is held out for early stopping (0.1), `num_processes` that train together (1), and `show_progress`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.finetunable = True
        self.TrainingJob = LocalTrainingJob

    @staticmethod
    def is_provider_model(model: str) -> bool:
        """Whether the model string is that of weights on this machine."""
        return model.startswith("local/")

    @staticmethod
    def finetune(
        job: TrainingJob,
        model: str,
        train_data: list[dict[str, Any]],
        train_data_format: TrainDataFormat | str | None,
        train_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """Train `model` (a local model string, folder or hub id) on chat rows, and return the tuned weights' model string.

        If the model has an adapter, that is trained further.

        Raises:
            ConfigError: A format other than chat, or a setting that training, or the adapter, does not have.
            DataError: No rows.
            ModelError: The model cannot be found.
        """
        if isinstance(job, LocalTrainingJob) and not job.set_running_or_notify_cancel():
            raise SystemExit  # ends the job's thread without a word: the job already says that it was cancelled
        _check_data(train_data, train_data_format)
        from ..models.engine import LocalEngine, find_engine

        base = find_engine(model) if model.startswith("local/") else LocalEngine(model)
        settings = dict(train_kwargs or {})
        output = settings.pop("output_dir", None)
        share = settings.pop("validation_fraction", _VALIDATION_SHARE)
        shown = settings.pop("show_progress", True)
        count = settings.pop("num_processes", 1)
        rows, held_out = split(train_data, share)
        from ..training import TrainingConfig, train

        config = TrainingConfig.from_kwargs(settings)
        # What only says how it is carried out (processes, the bar) names no other run.
        named = {**settings, "validation_fraction": share}
        folder = Path(output) if output else default_folder(base.model_string, train_data, named)
        result = train(
            base.model,
            rows,
            config=config,
            output_dir=folder,
            validation=held_out,
            device=base.device,
            show_progress=shown,
            adapter=base.adapter,
            num_processes=count,
        )
        tuned = _tuned_engine(base, result)
        base.serving(tuned.model_string)
        return tuned.model_string


def trained_lm(lm: dspy.LM, result: "TrainingResult") -> dspy.LM:
    """`lm`, settings and all, over the weights that training its model gave. `lm` itself stays as it is."""
    from ..models.async_engine import AsyncLocalEngine

    tuned = _tuned_engine(lm.engine.serving(lm.model), result)
    return lm.copy(model=tuned.model_string, engine=tuned, async_engine=AsyncLocalEngine(tuned))


def _tuned_engine(base: "LocalEngine", result: "TrainingResult") -> "LocalEngine":
    from ..models.engine import LocalEngine

    if (Path(result.path) / "adapter_config.json").is_file():
        return LocalEngine(base.model, result.path, device=base.device, dtype=base.dtype)
    return LocalEngine(result.path, device=base.device, dtype=base.dtype)


def split(rows: Sequence[dict[str, Any]], share: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training rows, held-out rows): the same ones for the same rows; nothing is held out of fewer than ten."""
    if not isinstance(share, (int, float)) or isinstance(share, bool) or not 0 <= share < 1:
        raise ConfigError(f"validation_fraction is {share!r}.", hint="Use a share from 0 up to, but not including, 1.")
    if len(rows) < _FIRST_HELD_OUT or share == 0:
        return list(rows), []
    order = random.Random(0).sample(range(len(rows)), len(rows))
    held_out = set(order[: math.ceil(len(rows) * share)])
    from ..training.rows import Part

    return Part(rows, (i for i in range(len(rows)) if i not in held_out)), Part(rows, sorted(held_out))


def default_folder(model_string: str, rows: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Path:
    """`finetuned/<model>-<12 hex>` in dspyc's own folder: the same run, the same name."""
    content = json.loads(json.dumps([model_string, list(rows), dict(settings)], default=str))
    name = model_string.removeprefix("local/").partition("@")[0]
    return home() / "finetuned" / f"{name}-{fingerprint(content)[:12]}"


def _check_arguments(model: Any, adapter: Any, generation: Mapping[str, Any]) -> None:
    for name, value in (("model", model), ("adapter", adapter)):
        if not isinstance(value, (str, Path)) and not (name == "adapter" and value is None):
            raise ConfigError(
                f"LocalLM's {name} is a {type(value).__name__}.",
                hint="Give a folder, a Hugging Face id or 'dspyc/tiny' as text or as a path.",
            )
        if value is not None and not str(value).strip():
            raise ConfigError(f"LocalLM's {name} is empty.", hint="Give a folder, a Hugging Face id or 'dspyc/tiny'.")
    unknown = sorted(set(generation) - {*_GENERATION, *_LM_SETTINGS})
    if unknown:
        raise ConfigError(
            f"LocalLM has no setting {', '.join(unknown)}.",
            hint=f"It has {', '.join((*_GENERATION, *_LM_SETTINGS))}; a local model needs no key and no address.",
        )


def _check_values(generation: Mapping[str, Any]) -> None:
    """Raises ConfigError where DSPy would refuse a value in every call: it is read as a call reads it."""
    plain = {"model": "local", "messages": [{"role": "user", "content": "?"}]}
    for name, value in generation.items():
        if name not in _GENERATION or name == "rollout_id" or value is None:
            continue
        try:
            if name != "n":
                lm15.request_from_openai_chat({**plain, name: value})
            elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError("n must be a whole number from 1")
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"LocalLM's {name} is {value!r}: {error}.", hint=f"Leave {name} out for the default."
            ) from error


def _warn_idle(generation: Mapping[str, Any], *, greedy_by_default: bool) -> None:
    """Say which settings of sampling will do nothing. A call may bring its own temperature, so this is no error."""
    temperature = generation.get("temperature")
    greedy = greedy_by_default if temperature is None else temperature == 0
    idle = [name for name in ("top_k", "top_p") if generation.get(name) is not None]
    if greedy and idle:
        logger.warning(
            "%s: LocalLM's temperature is %s, which takes the likeliest token, and nothing is sampled. Set temperature=1.",
            " and ".join(f"{name}={generation[name]!r} changes nothing" for name in idle),
            temperature,
        )


def _check_data(rows: Any, data_format: TrainDataFormat | str | None) -> None:
    if data_format is not None and str(getattr(data_format, "value", data_format)) != TrainDataFormat.CHAT.value:
        raise ConfigError(
            f"The training data's format is {data_format!r}; local training takes chat rows.",
            hint="Pass TrainDataFormat.CHAT and rows of the form {'messages': [...]}.",
        )
    if not rows:
        raise DataError("There are no rows to train on.", hint="Pass rows of the form {'messages': [...]}.")
