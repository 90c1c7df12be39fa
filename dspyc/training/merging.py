"""A LoRA adapter and its base as one model, which plain transformers loads."""

import shutil
from pathlib import Path
from typing import Any

import torch

from ..errors import ConfigError, ModelError
from ..files import whole_folder
from ..models.weights import adapter_settings, check, load_model, load_tokenizer, resolve
from .files import guarded
from .methods import save_weights


def merge(adapter: str | Path, out: str | Path, *, base: str | Path | None = None) -> Path:
    """Write the weights of `base` with `adapter` added, in the base's own dtype, and its tokenizer; returns `out`.

    They are added in float32 on the CPU. The folder appears whole or not at all.

    Args:
        base: A folder, a Hugging Face id or "dspyc/tiny"; None takes what the adapter names.

    Raises:
        ConfigError: `out` is not empty.
        ModelError: The adapter or the base cannot be read, or do not fit each other.
        TrainingError: `out` cannot be written.
    """
    from peft import PeftModel

    source, target = resolve(adapter), Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} is not empty.", hint="Merge into a new folder.")
    named = base or _base_of(source)
    folder = resolve(named)
    check(folder, source)
    model: Any = load_model(folder, "cpu", "float32")
    try:
        model = PeftModel.from_pretrained(model, str(source))
        _check_same_layers(model, source)
        _part_ends(model.get_base_model())
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

    both = load_peft_weights(str(adapter), device="cpu"), get_peft_model_state_dict(model)
    # PEFT may have written the base's own embeddings beside what was learned.
    saved, own = ({name for name in tensors if "base_layer" not in name} for tensors in both)
    differing = saved ^ own
    if differing:
        raise ValueError(f"{min(differing)} is in one of them only")


def _base_of(adapter: Path) -> str:
    """The base that an adapter's settings name."""
    named = adapter_settings(adapter).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ModelError(f"The adapter in {adapter} does not name its base.", hint="Pass base=.")
    return named


def _part_ends(model: Any) -> None:
    """Untie the output from the input embeddings where one of them is adapted: what is added to it is not the other's."""
    inside, outside = model.get_input_embeddings(), model.get_output_embeddings()
    if outside is None or not any(hasattr(end, "base_layer") for end in (inside, outside)):
        return
    layer = getattr(outside, "base_layer", outside)
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    for settings in (model.config, model.config.get_text_config()):
        settings.tie_word_embeddings = False
