"""What answers in `local_inference.py`: `dspyc.LocalLM`, and transformers' own ways of generating as engines of a `dspy.LM`."""

import contextlib
import queue
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

SIDES = ("ours", "single", "static", "continuous", "serve")
NEW_TOKENS = 48  # where a request does not say how many
END = 3  # the token that ends a reply
GATHER = 0.01  # seconds without a new request after which a static batch starts


def lm_of(side: str, turn: dict[str, Any], *, constrained: bool = False, **generation: Any) -> Any:
    """A side's language model; only ours can be `constrained`."""
    import dspy

    import dspyc

    model, local = turn["model"], {"device": turn["device"], "dtype": turn["dtype"], "cache": False, **generation}
    if side == "ours":
        return dspyc.LocalLM(model, constrained=constrained, **local)
    if side == "serve":
        return dspyc.LocalLM(model, server="transformers", constrained=False, **local)
    engine = {"single": Single, "static": Static, "continuous": Continuous}[side](turn)
    return dspy.LM(f"{side}/model", engine=engine, cache=False, **generation)


class Generate:
    """A model and its tokenizer behind DSPy's engine contract; `answer` gives the new ids of one prompt."""

    supported_params = frozenset({"temperature", "max_tokens", "n"})

    def __init__(self, turn: dict[str, Any]) -> None:
        from transformers import AutoModelForCausalLM

        from dspyc.models import ChatTokenizer
        from dspyc.models.weights import load_tokenizer

        loaded: Any = AutoModelForCausalLM.from_pretrained(turn["model"], dtype=turn["dtype"])
        self.model = loaded.to(turn["device"]).eval()
        self.chat = ChatTokenizer(load_tokenizer(turn["model"]))

    def complete(self, request: Any) -> Any:
        from dspy import lm15

        from dspyc.models import messages_of

        messages, _ = messages_of(request)
        ids = self.chat.prompt_ids(messages)
        new = self.answer(ids, request.config.max_tokens or NEW_TOKENS, request.config.temperature or 0.0)
        ended = END in new
        new = new[: new.index(END)] if ended else new
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(self.chat.decode(new)),
            finish_reason="stop" if ended else "length",
            usage=lm15.Usage(input_tokens=len(ids), output_tokens=len(new)),
        )

    def answer(self, ids: list[int], most: int, temperature: float) -> list[int]:
        raise NotImplementedError

    def generate(self, prompts: Sequence[list[int]], most: int, temperature: float) -> list[list[int]]:
        """New ids for each prompt, by one call of `generate` over the padded prompts."""
        import torch

        width = max(map(len, prompts))
        at = self.model.device
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts], device=at)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=at)
        how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        with torch.inference_mode():
            found = self.model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, **how)
        return [row[width:].tolist() for row in found]

    def close(self) -> None:
        pass


class Single(Generate):
    """`generate` for each request, one after another."""

    def __init__(self, turn: dict[str, Any]) -> None:
        super().__init__(turn)
        self._lock = threading.Lock()

    def answer(self, ids: list[int], most: int, temperature: float) -> list[int]:
        with self._lock:
            return self.generate([ids], most, temperature)[0]


class Static(Generate):
    """Padded batches of `generate`, up to the longest reply: whoever asks while one runs is in the next."""

    def __init__(self, turn: dict[str, Any]) -> None:
        super().__init__(turn)
        self._rows = turn["static_rows"]
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def answer(self, ids: list[int], most: int, temperature: float) -> list[int]:
        found: Future[list[int]] = Future()
        self._asked.put((ids, most, temperature, found))
        return found.result()

    def _run(self) -> None:
        while True:
            batch = [self._asked.get()]
            with contextlib.suppress(queue.Empty):
                while len(batch) < self._rows:
                    batch.append(self._asked.get(timeout=GATHER))
            most, temperature = max(row[1] for row in batch), batch[0][2]
            for row, new in zip(batch, self.generate([row[0] for row in batch], most, temperature), strict=True):
                row[3].set_result(new[: row[1]])


class Continuous(Generate):
    """transformers' continuous batching; a thread hands out its results."""

    def __init__(self, turn: dict[str, Any]) -> None:
        super().__init__(turn)
        self._managers: dict[float, Any] = {}
        self._waiting: dict[str, Future[list[int]]] = {}
        self._lock = threading.Lock()

    def answer(self, ids: list[int], most: int, temperature: float) -> list[int]:
        found: Future[list[int]] = Future()
        with self._lock:
            manager = self._manager(temperature)
            name = f"request {len(self._waiting)}"
            self._waiting[name] = found
            manager.add_request(ids, request_id=name, max_new_tokens=most)
        return found.result()

    def _manager(self, temperature: float) -> Any:
        if temperature not in self._managers:
            from transformers import GenerationConfig

            how = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
            config = GenerationConfig(max_new_tokens=NEW_TOKENS, eos_token_id=END, pad_token_id=0, **how)
            self._managers[temperature] = manager = self.model.init_continuous_batching(generation_config=config)
            manager.start()
            threading.Thread(target=self._hand_out, args=(manager,), daemon=True).start()
        return self._managers[temperature]

    def _hand_out(self, manager: Any) -> None:
        while True:
            result = manager.get_result(timeout=0.2)
            if result is not None and result.is_finished():
                self._waiting[result.request_id].set_result(list(result.generated_tokens))

    def close(self) -> None:
        for manager in self._managers.values():
            manager.stop(block=False)
