"""What attention and recurrence each do in a hybrid language model."""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "Phase": "interventions.phase",
    "Plan": "interventions.rules",
    "KeepTopHeads": "interventions.head_rules",
    "KeepHeads": "interventions.head_rules",
    "AblateHeads": "interventions.head_rules",
    "AblateMixer": "interventions.head_rules",
    "HideTokens": "interventions.token_rules",
    "OnlyTokens": "interventions.token_rules",
    "BalanceTokens": "interventions.token_rules",
    "HideAll": "interventions.token_rules",
    "AblateRecurrent": "interventions.recurrent_rules",
    "ResetState": "interventions.recurrent_rules",
    "PatchState": "interventions.recurrent_rules",
    "paper": "interventions.presets",
    "PAPER_PHASES": "interventions.presets",
    "Sample": "prompts.sample",
    "load_model": "models.load",
    "bundled_models": "models.source",
    "HybridModel": "models.hybrid",
    "run_checks": "models.checks",
    "generate": "runs.generate",
    "loglikelihood": "runs.loglikelihood",
    "capture": "runs.capture",
    "CaptureRequest": "runs.capture_request",
    "captures": "runs.capture_store",
    "read_capture": "runs.capture_store",
    "states": "runs.states",
    "fork": "runs.fork",
    "mixer_outputs": "runs.references",
    "prompt_memories": "runs.references",
    "KnockOut": "probes.knockout",
    "span_shares": "probes.shares",
    "corrupt_pairs": "prompts.pairs",
    "Needle": "prompts.needle",
    "needle_grid": "prompts.needle",
    "PAPER_LENGTHS": "prompts.needle",
    "PAPER_DEPTHS": "prompts.needle",
    "Haystack": "prompts.haystack",
    "Record": "runs.record",
    "retrieval_score": "scores.retrieval",
    "choice_accuracy": "scores.choice",
    "target_loglikelihood": "scores.retrieval",
    "RunFolder": "runs.store",
    "read_records": "runs.store",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use, so that ``import segregation`` costs nothing."""
    if name not in _HOME:
        raise AttributeError(f"module 'segregation' has no attribute {name!r}")
    return getattr(importlib.import_module(f"segregation.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
