"""Small real models, made from configurations on the spot, and rows for them to learn."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from dspyc.models import ChatTokenizer
from dspyc.training.rows import encode_rows

SPECIAL = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(SPECIAL + letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=TEMPLATE,
        model_max_length=256,
        clean_up_tokenization_spaces=False,
    )


def architecture(kind: str = "llama", **changes: Any) -> Any:
    import transformers

    common = {"vocab_size": len(tokenizer()), "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    if kind == "gpt2":
        still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **(common | still | changes))
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
    }
    if kind == "mamba":
        return transformers.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **(common | changes))
    if kind == "mistral":
        shape["sliding_window"] = 16
    if kind == "qwen3_moe":
        shape |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    if kind not in ("phi", "granite"):
        shape |= {"num_key_value_heads": 1, "head_dim": 16}
    kinds = {
        "llama": transformers.LlamaConfig,
        "qwen3": transformers.Qwen3Config,
        "gemma": transformers.GemmaConfig,
        "gemma2": transformers.Gemma2Config,
        "phi": transformers.PhiConfig,
        "granite": transformers.GraniteConfig,
        "mistral": transformers.MistralConfig,
        "qwen3_moe": transformers.Qwen3MoeConfig,
        "phi3": transformers.Phi3Config,
    }
    return kinds[kind](**(shape | common | changes))


def model(kind: str = "llama", seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(architecture(kind, **changes))


def folder(path: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A Hugging Face folder of a small model with random weights."""
    model(kind, **changes).to(dtype).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def rows(count: int = 20, prompt: str = "") -> list[dict[str, Any]]:
    """Chat rows of different lengths, each with its own answer."""
    words = ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine")
    return [
        {
            "messages": [
                {"role": "user", "content": f"{prompt}{i}{'.' * (i % 5)}"},
                {"role": "assistant", "content": words[i % 10]},
            ],
            "predictor": "tree",
        }
        for i in range(count)
    ]


def encoded(count: int = 20, prompt: str = "") -> Any:
    return encode_rows(rows(count, prompt), ChatTokenizer(tokenizer()))[0]
