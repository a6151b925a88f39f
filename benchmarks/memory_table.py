"""How much memory published models take, as a Markdown table, from their configs alone.

``python -m benchmarks.memory_table --tokens 4096`` prints ``docs/howto/memory.md``'s table. The configs are those of
``benchmarks.published`` and, where a transformers config class has the sizes of a published model for its defaults,
those defaults.
"""

import argparse
from collections.abc import Mapping

import torch
from transformers import (
    KimiLinearConfig,
    LlamaConfig,
    OlmoHybridConfig,
    PretrainedConfig,
    Qwen3NextConfig,
    ZambaConfig,
)

from benchmarks.published import PUBLISHED
from segregation.models.memory_needed import memory_needed

DEFAULTS: Mapping[str, type[PretrainedConfig]] = {
    "Zyphra/Zamba-7B-v1": ZambaConfig,
    "Qwen/Qwen3-Next-80B-A3B-Instruct": Qwen3NextConfig,
    "moonshotai/Kimi-Linear-48B-A3B-Instruct": KimiLinearConfig,
    "allenai/Olmo-Hybrid-7B": OlmoHybridConfig,
    "meta-llama/Llama-2-7b-hf": LlamaConfig,
}
"""Published models that transformers' documentation says a config class has for its defaults, with as many parameters
as their names say."""


def table(rows: int, tokens: int) -> str:
    """One line for each model, in GB (10^9 bytes) of bf16."""
    lines = [
        "| model | weights | remembered | a forward | scores of heads | eager | all logits |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    configs = {name: entry.config(**entry.fields) for name, entry in PUBLISHED.items()}
    for name, config in {**configs, **{name: cls() for name, cls in DEFAULTS.items()}}.items():
        found = memory_needed(config, rows, tokens, torch.bfloat16)
        parts = (found.remembered, found.forward, found.head_scores, found.eager, found.all_logits)
        lines.append(
            f"| {name} | {found.weights / 1e9:.1f} | " + " | ".join(f"{part / 1e9:.2f}" for part in parts) + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=4096)
    options = parser.parse_args()
    print(table(options.rows, options.tokens))


if __name__ == "__main__":
    main()
