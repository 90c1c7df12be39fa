"""Settings under one name, for how much a run may cost (a preset) and for what is learned (a task).

    TrainingConfig.preset("low_resource", task="chat", learning_rate=1e-4)

A task says what the rows are like, a preset what the machine and the patience are like, so they set different things; where
both say something, the task gives way. What the caller says replaces either.
"""

from typing import Any

from ..errors import ConfigError

PRESETS: dict[str, dict[str, Any]] = {
    # Does everything work? A minute on a laptop, evaluated and saved on the way; the result is of no use.
    "quick_test": {"max_steps": 20, "batch_size": 4, "eval_steps": 10, "save_steps": 10, "logging_steps": 1},
    # The least memory: a small adapter, few tokens at once, activations computed again instead of kept.
    "low_resource": {
        "method": "lora",
        "lora_rank": 8,
        "lora_alpha": 16.0,
        "batch_size": 4,
        "gradient_accumulation": 4,
        "micro_batch_tokens": 2_048,
        "gradient_checkpointing": True,
        "save_total_limit": 1,
    },
    # Time for quality: a wide adapter (rank-stabilised, so that its scale is that of a narrow one), a slow cosine, and the
    # best of several passes rather than the last.
    "high_quality": {
        "method": "lora",
        "lora_rank": 64,
        "lora_alpha": 64.0,
        "use_rslora": True,
        "epochs": 5.0,
        "learning_rate": 1e-4,
        "scheduler": "cosine",
        "warmup_ratio": 0.1,
        "weight_decay": 0.01,
        "early_stopping_patience": 2,
    },
    # What a scheduled job wants: steps of even cost, checkpoints that bound what a kill loses, and a stop when it is done.
    "production": {
        "method": "lora",
        "epochs": 3.0,
        "token_budget": 16_384,
        "scheduler": "cosine",
        "warmup_ratio": 0.05,
        "weight_decay": 0.01,
        "save_steps": 200,
        "eval_steps": 200,
        "save_total_limit": 3,
        "early_stopping_patience": 3,
    },
}

TASKS: dict[str, dict[str, Any]] = {
    # Many short turns of many kinds: two passes, before the replies are learned by heart.
    "chat": {"epochs": 2.0, "learning_rate": 2e-4, "lora_dropout": 0.05},
    # Every token counts and a wrong one breaks the program: no smoothing, no dropout, a lower rate.
    "code": {"epochs": 3.0, "learning_rate": 1e-4, "lora_dropout": 0.0},
    # Following instructions is mostly there already; a light hand keeps what the model knows.
    "instruct": {"epochs": 3.0, "learning_rate": 1e-4, "warmup_ratio": 0.05},
    # New words and facts: more passes, and the prompt is text of the domain too.
    "domain": {"epochs": 5.0, "learning_rate": 1e-4, "prompt_loss_weight": 0.1, "weight_decay": 0.01},
    "custom": {},
}


def preset_settings(preset: str | None, task: str | None) -> dict[str, Any]:
    """The settings that a preset and a task stand for.

    Raises:
        ConfigError: There is no such preset or task.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"There is no preset {preset!r}.", hint=f"The presets are {', '.join(PRESETS)}.")
    if task is not None and task not in TASKS:
        raise ConfigError(f"There is no task {task!r}.", hint=f"The tasks are {', '.join(TASKS)}.")
    chosen = PRESETS[preset] if preset is not None else {}
    wanted = TASKS[task] if task is not None else {}
    if "max_steps" in chosen:
        wanted = {name: value for name, value in wanted.items() if name != "epochs"}
    return wanted | chosen
