"""The README of an artifact, for the person who finds the folder."""

import json
import re
from pathlib import Path
from typing import Any

from .report import CompileReport
from .run_report import RunReport

_BASE = re.compile(r"\A---\n(?:(?!---\n).*\n)*?base_model: *(.+)\n")  # in the YAML that a model card begins with


def readme(name: str, facts: dict[str, Any], report: RunReport | None) -> str:
    """Markdown: what it is, what it scores, how to use it with dspyc and without, where it comes from."""
    parts = [f"# {name}", _what(facts), _scores(report), _use(name, facts), _origin(facts, report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(facts: dict[str, Any]) -> str:
    lines = ["A DSPy program compiled by dspyc.", "", "| predictor | language model | weights |", "| --- | --- | --- |"]
    for key, predictor in facts["predictors"].items():
        lm = facts["lms"][predictor["lm"]] if predictor["lm"] is not None else {"model": "none", "weights": None}
        kind = "LoRA adapter" if lm.get("adapter") else "full model"
        weights = f"`{lm['weights']}` ({kind})" if lm.get("weights") else "by name"
        model = f"{lm['model']}, made from {lm['made_from']}" if lm.get("made_from") else lm["model"]
        lines.append(f"| `{key}` | {model} | {weights} |")
    return "\n".join(lines)


def made_from(weights: Path) -> str | None:
    """The base that a model folder's card names, or None where it has no card that names one."""
    try:
        card = (weights / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    named = _BASE.search(card)
    return named[1].strip("\"' ") if named else None


def _scores(report: RunReport | None) -> str:
    if report is not None and not isinstance(report, CompileReport):
        return f"## Scores\n\n{report.conclusion}"
    if report is None or report.verdict is None:
        return "## Scores\n\nNot compared on held-out examples."
    verdict = report.verdict
    low, high = verdict.interval
    teacher = f"| teacher | {verdict.teacher:.3f} |\n" if verdict.teacher is not None else ""
    kept = "\n\nThe compiled weights were worse, so this is the student as it was." if report.kept_student else ""
    return (
        f"## Scores\n\nMeans on {verdict.examples} held-out examples.\n\n| program | score |\n| --- | --- |\n"
        f"| student before | {verdict.before:.3f} |\n{teacher}| student after | {verdict.after:.3f} |\n\n"
        f"After − before lies between {low:+.3f} and {high:+.3f} (95 %, paired bootstrap): {verdict.outcome}.{kept}"
    )


def _use(name: str, facts: dict[str, Any]) -> str:
    source = facts["program"]["class"]
    given = "" if facts["program"]["module"] else f"  # imports {source}; or pass program=..."
    return f"""## Use

```python
import dspyc

program = dspyc.load("{name}"){given}
```

With plain DSPy: `program.load("{name}/program.json")` on a program of class `{source}` restores prompts and demos.
{_served(facts)}
Predictors whose state names an `adapter` were trained with it: run them under `dspy.context(adapter=…)` of that class."""


def _served(facts: dict[str, Any]) -> str:
    """How models are had without dspyc: weights that lie here from a server, the others from where they stay."""
    found = []
    if any(lm.get("weights") for lm in facts["lms"]):
        found.append("""Serve `weights/` with any server that takes Hugging Face models or PEFT adapters (transformers, vLLM),
and set it with `program.set_lm(dspy.LM("openai/…", api_base=…))`.""")
    if elsewhere := sorted({lm["model"] for lm in facts["lms"] if not lm.get("weights")}):
        names = ", ".join(f"`{name}`" for name in elsewhere)
        found.append(f"The weights of {names} are not in this folder: `dspy.LM` asks for them by that name.")
    return "\n".join(found)


def _origin(facts: dict[str, Any], report: RunReport | None) -> str:
    lines = ["## Origin", "", "Versions: " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()) + "."]
    if report is not None:
        trained_on = report.rows if isinstance(report, CompileReport) else {}
        rows = [f"{count} for `{key}`" for key, count in trained_on.items()]
        trained = f"Training rows: {', '.join(rows)}." if rows else ""
        lines += [f"Seed {report.seed}. {trained}".rstrip(), f"Fingerprints: `{json.dumps(report.fingerprints)}`."]
    lines.append("`SHA256SUMS` lists every file; `dspyc.load` checks them all.")
    return "\n".join(lines)
