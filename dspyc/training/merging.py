"""A LoRA adapter and its base as one model, which plain transformers loads."""

import json
import shutil
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ModelError
from ..models.weights import check, load_model, load_tokenizer, resolve
from .files import guarded, whole_folder
from .methods import save_weights


def merge(adapter: str | Path, out: str | Path, *, base: str | Path | None = None) -> Path:
    """Write the weights of `base` with `adapter` added, in the base's own dtype, and its tokenizer; returns `out`.

    They are added in float32 on the CPU. The folder appears whole or not at all.

    Args:
        base: A folder, a Hugging Face id or "dspyc/tiny"; None takes what the adapter names.

    Raises:
        ConfigError: `out` holds something.
        ModelError: The adapter or the base cannot be read, or do not fit each other.
        TrainingError: `out` cannot be written.
    """
    from peft import PeftModel

    source, target = resolve(adapter), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is not empty.", hint="Merge into a new folder.")
    if not (source / "adapter_config.json").is_file():
        raise ModelError(f"{source} holds no adapter_config.json.", hint="Pass the folder of a LoRA adapter.")
    named = base or json.loads((source / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path")
    if not named:
        raise ModelError(f"The adapter in {source} does not name its base.", hint="Pass base=.")
    folder = resolve(named)
    check(folder, source)
    model: Any = load_model(folder, "cpu", "float32")
    try:
        model = PeftModel.from_pretrained(model, str(source))
        _check_same_layers(model, source)
        model = model.merge_and_unload()
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"The adapter in {source} does not fit {folder}: {str(error).splitlines()[0]}", hint="Pass its own base."
        ) from error
    with guarded("write the merged weights", target.parent), whole_folder(target) as aside:
        save_weights(model, load_tokenizer(folder), str(named), folder, aside)
        if (generation := folder / "generation_config.json").is_file():
            shutil.copyfile(generation, aside / generation.name)
    return target


def _check_same_layers(model: Any, adapter: Path) -> None:
    """Raises ValueError where the base lacks layers that the adapter has: PEFT leaves them out without an error."""
    from peft import get_peft_model_state_dict, load_peft_weights

    differing = load_peft_weights(str(adapter), device="cpu").keys() ^ get_peft_model_state_dict(model).keys()
    if differing:
        raise ValueError(f"{min(differing)} is in one of them only")
