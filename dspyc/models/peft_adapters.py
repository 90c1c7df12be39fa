"""Adapters that do more than add to linear layers (DoRA, biases, embeddings, whole modules): peft wears them, one at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ModelError


class PeftAdapters:
    """Adapters that peft puts around the layers of one base, `bytes` in all; all are off outside of `wearing`."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._base = _bytes(model)
        self.bytes = 0
        self._wrapper: Any = None
        self._names: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    @property
    def names(self) -> set[str]:
        return set(self._names)

    def load(self, name: str, folder: Path) -> None:
        """Put the adapter in `folder` around the base, switched off.

        Raises:
            ModelError: It does not fit the base.
        """
        from peft import PeftModel

        try:
            if self._wrapper is not None:
                self._wrapper.load_adapter(str(folder), adapter_name=name)
            else:
                self._wrapper = PeftModel.from_pretrained(self._model, str(folder), adapter_name=name)
        except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"The adapter in {folder} does not fit the model in {self._model.name_or_path}: {error}",
                hint="Its adapter_config.json names the base that it was trained on.",
            ) from error
        finally:
            if self._wrapper is not None:
                self._wrapper.base_model.disable_adapter_layers()
        self._model.eval()
        self._names.add(name)
        self.bytes = _bytes(self._model) - self._base

    def drop(self, name: str) -> None:
        """Free an adapter."""
        self._names.discard(name)
        self._wrapper.delete_adapter(name)
        self._wrapper.base_model.disable_adapter_layers()
        self.bytes = _bytes(self._model) - self._base

    @contextmanager
    def wearing(self, name: str) -> Iterator[None]:
        """The forward pass inside is that of the base with this adapter."""
        self._wrapper.base_model.enable_adapter_layers()
        self._wrapper.set_adapter(name)
        try:
            yield
        finally:
            self._wrapper.base_model.disable_adapter_layers()


def _bytes(model: Any) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())
