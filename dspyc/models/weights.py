"""Where a model's files lie, what they hold, and how they are read: Hugging Face folders of safetensors, no pickles."""

import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import ConfigError, ModelError
from ..files import read_json, sha256_of
from .plain_template import with_template

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY = "dspyc/tiny"
DTYPES = ("auto", "bfloat16", "float16", "float32")

# What decides an answer. Model cards, optimizer states and training leftovers beside it do not.
_CONTENT = (
    "*.safetensors",
    "*.safetensors.index.json",
    "adapter_config.json",
    "added_tokens.json",
    "chat_template.*",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.*",
)
_UNREAD = "consolidated*"  # the same weights under other names, beside those that are loaded (Mistral)
_ALLOWED = f"A model is a folder, a Hugging Face id such as 'Qwen/Qwen3-0.6B', or '{TINY}'."
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_TIMEOUT = 5.0  # seconds to wait for the hub's first answer
_loading = threading.RLock()  # transformers sets process-wide defaults while it builds a model


def resolve(model: str | Path) -> Path:
    """The folder that holds `model`, downloaded first where it is a hub id that is not on this machine.

    Raises:
        ModelError: There is no such folder, or the hub id cannot be downloaded.
    """
    text = str(model)
    if text == TINY:
        return Path(__file__).parent / "tiny"
    if not text.strip():
        raise ModelError("The model's name is empty.", hint=_ALLOWED)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if isinstance(model, Path) or text.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(text):
        kind = "is a file" if folder.is_file() else "does not exist"
        raise ModelError(f"The model folder {text!r} {kind}.", hint=_ALLOWED)
    return _from_hub(text)


def identity(model: str | Path, adapter: str | Path | None = None) -> str:
    """12 hex digits that name the content of weights, tokenizer and configuration: other bytes give other digits."""
    digest = hashlib.sha256()
    for folder in [resolve(model)] + ([resolve(adapter)] if adapter is not None else []):
        for file in content_files(folder):
            digest.update(f"{file.name}\0{_file_hash(file)}\0".encode())
        digest.update(b"\1")
    return digest.hexdigest()[:12]


def refuse_changed(model: str, *, saved: str, now: str) -> None:
    """Raise where the identity of a model's weights is not the one that was saved with an engine.

    Raises:
        ModelError: They changed.
    """
    if now != saved:
        raise ModelError(
            f"The weights of {model!r} changed since this was saved: {saved} then, {now} now.",
            hint="Restore them, or make the LM anew with dspyc.LocalLM to use what is there now.",
        )


def content_files(folder: Path) -> list[Path]:
    """The files in `folder` that decide what the model answers, by name."""
    named = [f for f in folder.iterdir() if any(fnmatch.fnmatch(f.name, p) for p in _CONTENT)]
    return sorted(f for f in named if not fnmatch.fnmatch(f.name, _UNREAD))


def weight_files(folder: Path, stem: str = "model") -> list[Path]:
    """The safetensors files that loading reads: those of the index, or else the one; they may be missing.

    Raises:
        ModelError: The index cannot be read.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return [folder / f"{stem}.safetensors"]
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise ModelError(f"{index} has no `weight_map`.", hint="Copy it again from where it came from.")
    return [folder / name for name in sorted(set(shards.values()))]


def tensors_in(file: Path) -> dict[str, dict[str, Any]]:
    """What a safetensors file says of each tensor: `dtype`, such as "F32", and `shape`. The file, which may be larger than
    memory, is not mapped.
    """
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        found: dict[str, dict[str, Any]] = json.loads(opened.read(length))
    found.pop("__metadata__", None)
    return found


def check(model: str | Path, adapter: str | Path | None = None) -> None:
    """Read the headers of all files of a model, and of the adapter on it, without loading the weights.

    Raises:
        ModelError: A file is missing, truncated or unreadable; the message names it.
    """
    folder = resolve(model)
    if not (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder} holds a LoRA adapter, not a model.", hint="Pass its base as model=, this as adapter=."
        )
    for name in ("config.json", "tokenizer_config.json"):
        _read_json(folder / name)
    for name in ("tokenizer.json", "generation_config.json"):
        if (folder / name).exists():
            _read_json(folder / name)
    for file in weight_files(folder):
        _check_safetensors(file)
    if adapter is not None:
        check_adapter(resolve(adapter))


def adapter_settings(folder: Path) -> dict[str, Any]:
    """What PEFT wrote of the adapter in `folder`.

    Raises:
        ModelError: Its file is missing or damaged.
    """
    return _read_json(folder / "adapter_config.json")


def check_adapter(folder: Path) -> None:
    """Find what is wrong with the LoRA adapter in `folder`, without its base.

    Raises:
        ModelError: It is of another type, or a file is missing or truncated.
    """
    kind = adapter_settings(folder).get("peft_type")
    if kind != "LORA":
        raise ModelError(f"The adapter in {folder} is of type {kind!r}; only LORA adapters can share a base.")
    for file in weight_files(folder, "adapter_model"):
        _check_safetensors(file)


def load_model(
    path: str | Path, device: str = "auto", dtype: str = "auto", settings: Mapping[str, Any] | None = None
) -> "PreTrainedModel":
    """The causal language model in `path`, in evaluation mode on `device`; `settings` replace those of its config.json.

    Raises:
        ModelError: A file is missing, truncated or does not fit the configuration.
        ConfigError: No such device or dtype.
    """
    from transformers import AutoModelForCausalLM

    from .heap import keep_pages

    folder, target, kind = resolve(path), device_of(device), dtype_of(dtype, device)
    check(folder)
    with _loading, quiet():
        try:
            model, report = cast(Any, AutoModelForCausalLM).from_pretrained(
                folder,
                dtype=kind,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
                **(settings or {}),
            )
        except Exception as error:  # whatever transformers makes of unusual files; the cause is kept
            raise ModelError(
                f"The model in {folder} cannot be loaded: {_first_line(error)}",
                hint="It must be a causal language model.",
            ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise ModelError(f"The weights in {folder} lack {len(report['missing_keys'])} tensors ({missing}, …).")
    if target.type == "cpu":
        keep_pages()
    return model.eval().to(target)  # type: ignore[no-any-return]


def load_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in `path`; with a plain chat template where it has none of its own.

    Raises:
        ModelError: Its files are missing or unreadable.
    """
    from transformers import AutoTokenizer

    folder = resolve(path)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        if (folder / name).exists():
            _read_json(folder / name)
    with _loading:
        try:
            found: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)  # type: ignore[no-untyped-call, unused-ignore]
        except Exception as error:
            raise ModelError(
                f"The tokenizer in {folder} cannot be loaded: {_first_line(error)}",
                hint="Copy tokenizer.json and tokenizer_config.json from the original model.",
            ) from error
    return with_template(found, folder)  # type: ignore[no-any-return]


def context_length(path: str | Path) -> int | None:
    """Tokens that prompt and reply may have together; None where the configuration sets no limit."""
    config = _read_json(resolve(path) / "config.json")
    for part in (config, config.get("text_config") or {}):
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx"):
            if isinstance(part.get(name), int):
                return int(part[name])
    return None


def vocabulary_size(path: str | Path) -> int | None:
    """The number of token ids that the model scores, which may be more than its tokenizer has; None where unknown."""
    config = _read_json(resolve(path) / "config.json")
    for part in (config, config.get("text_config") or {}):
        if isinstance(part.get("vocab_size"), int):
            return int(part["vocab_size"])
    return None


def device_of(device: str = "auto") -> "torch.device":
    """The torch device: `auto` is CUDA, then Apple's MPS, then the CPU."""
    import torch

    if device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(device)):
        raise ConfigError(f"There is no device {device!r}.", hint="Use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'.")
    found = torch.device(device)
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (found.index or 0) >= present[found.type]:
        raise ConfigError(f"This machine has no device {device!r}.", hint="Use device='auto' to take what there is.")
    return found


def dtype_of(dtype: str = "auto", device: str = "auto") -> "torch.dtype":
    """The torch dtype: `auto` is what `usual_dtype` says."""
    import torch

    if dtype not in DTYPES:
        raise ConfigError(f"There is no dtype {dtype!r}.", hint=f"Use one of {', '.join(DTYPES)}.")
    if dtype != "auto":
        return getattr(torch, dtype)  # type: ignore[no-any-return]
    target = device_of(device)
    return usual_dtype(target, multiplies_bf16(target))


def usual_dtype(device: "torch.device", bf16: bool) -> "torch.dtype":
    """What weights are best computed in: bfloat16 on a GPU that multiplies it, float16 on another, float32 elsewhere."""
    import torch

    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if bf16 else torch.float16


def multiplies_bf16(device: "torch.device") -> bool:
    """Whether a device is a GPU with bfloat16 of its own, from Ampere on; older ones emulate it, slowly."""
    import torch

    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted: dict[str, Any] = {"allow_patterns": [*_CONTENT, "*.jinja", "*.txt"], "ignore_patterns": _UNREAD}
    try:
        folder = Path(snapshot_download(model, **wanted, local_files_only=True))
        if any(f.suffix == ".safetensors" for f in folder.iterdir()):
            return folder
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass  # not on this machine yet
    try:
        return Path(snapshot_download(model, **wanted, etag_timeout=_HUB_TIMEOUT))
    except Exception as error:  # the hub client raises its own, the HTTP library's and the system's
        raise ModelError(
            f"The model {model!r} is no folder here and cannot be had from the Hugging Face hub: {_first_line(error)}",
            hint=_ALLOWED,
        ) from error


def _check_safetensors(file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        others = ", ".join(sorted(f.name for f in file.parent.iterdir())[:8]) if file.parent.is_dir() else ""
        raise ModelError(
            f"{file} is missing; its folder holds: {others or 'nothing'}.",
            hint="Only safetensors weights are loaded: save the model with save_pretrained, or download it again.",
        )
    try:
        with safe_open(file, framework="pt") as opened:
            opened.keys()
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{file} is truncated or corrupt: {_first_line(error)}", hint="Copy it again from where it came from."
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ModelError(f"{file} is missing.", hint=_ALLOWED)
    try:
        found = read_json(file)
    except (ValueError, OSError) as error:
        raise ModelError(
            f"{file} is truncated or corrupt: {_first_line(error)}", hint="Copy it again from where it came from."
        ) from error
    if not isinstance(found, dict):
        raise ModelError(f"{file} holds {type(found).__name__}, not a JSON object.")
    return found


def _file_hash(file: Path) -> str:
    real = file.resolve()
    if file.is_symlink() and real.parent.name == "blobs" and len(real.name) == 64:
        return real.name  # the hub cache names a large file by its SHA-256
    stat = real.stat()
    return _hash_of(real, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hash_of(file: Path, size: int, mtime_ns: int) -> str:
    return sha256_of(file)


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bar of transformers' own while a model is loaded, say."""
    from transformers.utils import logging as transformers_logging

    logging = cast(Any, transformers_logging)
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
