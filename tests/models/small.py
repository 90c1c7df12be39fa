"""Random models of a few thousand weights, made on the spot: what the engine is tested on."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SPECIAL = ["<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{%- if tools -%}<|im_start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif -%}"
    "{%- for message in messages -%}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{%- for call in message.tool_calls or [] -%}"
    "<tool_call>{{ {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}</tool_call>"
    "{%- endfor -%}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)
THINKING = CHATML.replace(
    "{{ message.content or '' }}",
    "{% if loop.last and message.role == 'assistant' -%}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content or '' }}",
)
TEXTS = [
    "Hello there, how are you today?",
    "[[ ## answer ## ]]\nyes or no, user system assistant tool\n",
    "0123456789 {}",
]


def tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a handful of merges, with ChatML turns."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 20, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def llama(folder: Path, *, seed: int = 0, context: int = 2048, template: str | None = CHATML, **changes: Any) -> Path:
    """A Llama of 2 layers of 32 in `folder`, with its tokenizer."""
    words = tokenizer(template)
    config = LlamaConfig(**{**_settings(words), "max_position_embeddings": context, **changes})
    return _save(LlamaForCausalLM, config, words, folder, seed)


def qwen3(folder: Path, *, seed: int = 0) -> Path:
    """A Qwen3 of the same size: normalised queries and keys, heads of a size of their own."""
    words = tokenizer()
    return _save(Qwen3ForCausalLM, Qwen3Config(**_settings(words), head_dim=16), words, folder, seed)


def qwen3_moe(folder: Path, *, seed: int = 0) -> Path:
    """A Qwen3 of which every token takes two of four experts."""
    words = tokenizer()
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return _save(Qwen3MoeForCausalLM, Qwen3MoeConfig(**_settings(words), head_dim=16, **experts), words, folder, seed)


def opt(folder: Path, *, seed: int = 0) -> Path:
    """An OPT of the same size, whose feed-forward layers read tokens without a batch dimension."""
    words = tokenizer()
    config = OPTConfig(**_settings(words), ffn_dim=64, word_embed_proj_dim=32, init_std=0.5)
    return _save(OPTForCausalLM, config, words, folder, seed)


def mistral(folder: Path, *, window: int, context: int = 2048, seed: int = 0) -> Path:
    """A Mistral of the same size, whose layers see so many tokens back and no more."""
    words = tokenizer()
    settings = {**_settings(words), "max_position_embeddings": context}
    config = MistralConfig(**settings, head_dim=8, sliding_window=window)
    return _save(MistralForCausalLM, config, words, folder, seed)


def phi3(folder: Path, *, short: int, seed: int = 0) -> Path:
    """A Phi-3 of the same size, whose rotary factors are others in texts of more than `short` tokens."""
    words = tokenizer()
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
    config = Phi3Config(
        **_settings(words),
        original_max_position_embeddings=short,
        rope_parameters={"rope_type": "longrope", "original_max_position_embeddings": short, **factors},
    )
    return _save(Phi3ForCausalLM, config, words, folder, seed)


def mamba(folder: Path, *, seed: int = 0) -> Path:
    """A Mamba: a state-space model, whose cache holds no keys and values."""
    words = tokenizer()
    kept = {
        name: value for name, value in _settings(words).items() if name.endswith(("token_id", "vocab_size", "range"))
    }
    config = MambaConfig(**kept, hidden_size=32, num_hidden_layers=2, state_size=4)
    return _save(MambaForCausalLM, config, words, folder, seed)


def gpt2(folder: Path, *, seed: int = 0, template: str | None = CHATML) -> Path:
    """A GPT-2 of the same size: learned absolute positions, and no pad token in its configuration."""
    words = tokenizer(template)
    config = GPT2Config(
        vocab_size=len(words),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=1024,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
    )
    return _save(GPT2LMHeadModel, config, words, folder, seed)


def gpt_neo(folder: Path, *, context: int, seed: int = 0) -> Path:
    """A GPT-Neo of the same size: learned absolute positions, and an attention that takes none but its own."""
    words = tokenizer()
    config = GPTNeoConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        attention_types=[[["global"], 2]],
        max_position_embeddings=context,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return _save(GPTNeoForCausalLM, config, words, folder, seed)


def lora(base: Path, folder: Path, *, seed: int, embeddings: bool | str = "auto", **settings: Any) -> Path:
    """A LoRA adapter for `base` whose weights are far from nothing; `settings` are LoraConfig's.

    `embeddings` says whether those of the base are saved beside it.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"], **settings})
    wrapped = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for weight in wrapped.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.5)
    wrapped.save_pretrained(folder, save_embedding_layers=embeddings)
    return folder


def _settings(words: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.5,  # logits far apart, so that no near tie hides a difference
        "bos_token_id": None,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }


def _save(kind: Any, config: Any, words: PreTrainedTokenizerFast, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
