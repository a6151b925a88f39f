"""Train a model of the zoo: ``python -m segregation.zoo.train --recipe tiny-jamba --out FOLDER --prose FILE ...``.

The run stops at ``--seconds`` with a checkpoint and goes on from it when called again; ``curve.jsonl`` gets a line
every ``LOG_EVERY`` steps. The folder opens with plain ``from_pretrained`` at the end.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from segregation.errors import ModelError
from segregation.zoo.corpus import ANSWER, HAYSTACK, PLAIN, TASK, Corpus, tokenizer_texts
from segregation.zoo.kernels import use_training_kernels, weighted_cross_entropy
from segregation.zoo.recipe import Recipe, recipe
from segregation.zoo.tokenizer import save_tokenizer, train_tokenizer

LOG_EVERY = 50
WARM_STEPS = 40
"""Steps that compile and fill the loader's queue, and say nothing of the speed."""
_KINDS = {"answer": ANSWER, "haystack": HAYSTACK, "plain": PLAIN, "task": TASK}


class Sequences(IterableDataset[tuple[Tensor, Tensor]]):
    """An endless stream of training sequences, another one in each loader process and after each resumption."""

    def __init__(self, tokenizer: str, prose: Sequence[Path], length: int, seed: str) -> None:
        self.tokenizer, self.prose, self.length, self.seed = tokenizer, prose, length, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        worker = torch.utils.data.get_worker_info()
        corpus = Corpus(Tokenizer.from_str(self.tokenizer), self.prose, f"{self.seed}:{worker.id if worker else 0}")
        while True:
            ids, weights = corpus.sequence(self.length)
            yield torch.from_numpy(ids), torch.from_numpy(weights)


def optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    fused = next(model.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=1e-8, fused=fused)


def train_step(
    model: nn.Module, optim: torch.optim.Optimizer, recipe: Recipe, step: int, ids: Tensor, weights: Tensor
) -> dict[str, Tensor]:
    """One optimiser step on ``batch pos+1`` tokens; the loss, and the mean loss of each kind of token, in nats."""
    for group in optim.param_groups:
        group["lr"] = recipe.lr_at(step)
    with torch.autocast(ids.device.type, dtype=torch.bfloat16, enabled=ids.is_cuda):
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    loss, each = weighted_cross_entropy(logits, ids[:, 1:], weights[:, 1:])
    loss.backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optim.step()
    optim.zero_grad(set_to_none=True)
    losses = {"loss": loss.detach(), "gradient_norm": norm}
    for kind, weight in _KINDS.items():
        chosen = weights[:, 1:] == weight
        losses[kind] = (each * chosen).sum() / chosen.sum().clamp(min=1)
    return losses


@dataclass
class Progress:
    """Where a training run is."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    devices: list[str] = field(default_factory=list)


def train(
    recipe: Recipe,
    out: Path,
    prose: Sequence[Path],
    *,
    tokenizer: Path | None,
    device: str,
    seconds: float,
    workers: int,
    compiled: bool = False,
    within: float = float("inf"),
) -> Progress:
    """Train until the recipe's steps are done or the seconds are spent; then checkpoint. Resumes from a checkpoint.

    Args:
        recipe: what is trained.
        out: where everything goes.
        prose: files of running text.
        tokenizer: a ready-made one.
        device: ``"cpu"`` or ``"cuda"``.
        seconds: stop and checkpoint after this long, wherever the learning rate is.
        workers: loader processes.
        compiled: use ``torch.compile``.
        within: shorten the recipe to as many steps as take this long, so that the learning rate falls to 0 in time,
            judged by the speed so far until it begins to fall.

    Raises:
        ModelError: the checkpoint in ``out`` is another recipe's.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "tokenizer.json").exists():
        fresh = (
            Tokenizer.from_file(str(tokenizer)) if tokenizer else train_tokenizer(tokenizer_texts(prose, "tokenizer"))
        )
        save_tokenizer(fresh, out, max_length=8192)
    model = recipe.build().to(device)  # pyright: ignore[reportArgumentType] (a decorated method of transformers)
    optim = optimizer(model, recipe)
    progress = _resume(out, recipe, model, optim)
    use_training_kernels(model)
    model.train()
    if compiled:
        model.compile(dynamic=False)
    before = progress.seconds
    progress.devices.append(torch.cuda.get_device_name() if device.startswith("cuda") else device)
    sequences = Sequences(
        (out / "tokenizer.json").read_text(), prose, recipe.length + 1, f"{recipe.seed}:{progress.step}"
    )
    loader = DataLoader(sequences, batch_size=recipe.batch, num_workers=workers, pin_memory=device.startswith("cuda"))
    whole, first, warm = recipe, progress.step, started
    with (out / "curve.jsonl").open("a") as curve:
        for ids, weights in loader:
            if progress.step == first + WARM_STEPS:
                warm = time.monotonic()
            elif within < float("inf") and first + 2 * WARM_STEPS < progress.step < recipe.fall:
                pace = (time.monotonic() - warm) / (progress.step - first - WARM_STEPS)
                fitting = progress.step + int((started + within - time.monotonic()) / pace)
                recipe = replace(whole, steps=max(progress.step + 1, min(whole.steps, fitting)))
            if progress.step >= recipe.steps or time.monotonic() - started > seconds:
                break
            ids, weights = ids.to(device, non_blocking=True), weights.to(device, non_blocking=True)
            losses = train_step(model, optim, recipe, progress.step, ids, weights)
            progress.step += 1
            progress.tokens += ids[:, 1:].numel()
            progress.seconds = before + time.monotonic() - started
            if progress.step % LOG_EVERY == 0 or progress.step == 1:
                line = {
                    "step": progress.step,
                    "tokens": progress.tokens,
                    "seconds": round(progress.seconds, 1),
                    "lr": recipe.lr_at(progress.step - 1),
                    **{name: round(value.item(), 4) for name, value in losses.items()},
                }
                curve.write(json.dumps(line) + "\n")
                curve.flush()
                print(recipe.name, line, flush=True)
    _checkpoint(out, recipe, model, optim, progress)
    save_weights(model, out)
    return progress


def save_weights(model: Any, folder: Path) -> None:
    """Config and bf16 safetensors that plain transformers opens."""
    state = {name: tensor.detach().to("cpu", torch.bfloat16) for name, tensor in _own_tensors(model).items()}
    model.save_pretrained(folder, state_dict=state, max_shard_size="16MB")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}, indent=2) + "\n")


def _own_tensors(model: Any) -> dict[str, Tensor]:
    """The state dict without the output matrix where it is the embedding's."""
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _checkpoint(out: Path, recipe: Recipe, model: nn.Module, optim: torch.optim.Optimizer, progress: Progress) -> None:
    """Weights, the optimiser's moments and the progress: tensors as safetensors, the rest as their metadata."""
    tensors = {f"model.{name}": tensor for name, tensor in _own_tensors(model).items()}
    for number, moments in optim.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    metadata = {"recipe": json.dumps(recipe.to_dict()), "progress": json.dumps(asdict(progress))}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out / "checkpoint.tmp", metadata)
    (out / "checkpoint.tmp").rename(out / "checkpoint.safetensors")


def _resume(out: Path, recipe: Recipe, model: nn.Module, optim: torch.optim.Optimizer) -> Progress:
    path = out / "checkpoint.safetensors"
    if not path.exists():
        return Progress()
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    kept, wanted = json.loads(metadata["recipe"]), json.loads(json.dumps(recipe.to_dict()))
    for name in ("family", "config", "seed"):
        if kept[name] != wanted[name]:
            raise ModelError(f"{path} was made by another recipe ({name} differs); train into another folder")
    model.load_state_dict(
        {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}, strict=False
    )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            moments.setdefault(int(number), {})[moment] = tensor
    optim.load_state_dict({"state": moments, "param_groups": optim.state_dict()["param_groups"]})
    return Progress(**json.loads(metadata["progress"]))


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prose", type=Path, nargs="*", default=[])
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json to use; trained from the texts if not given")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop and checkpoint after this long")
    parser.add_argument("--within", type=float, default=float("inf"), help="shorten the recipe to fit into this long")
    parser.add_argument("--workers", type=int, default=2, help="loader processes; a GPU needs about 14")
    parser.add_argument("--compiled", action="store_true", help="torch.compile; 1.3x for RecurrentGemma, not for Jamba")
    options = vars(parser.parse_args())
    torch.backends.cuda.matmul.allow_tf32 = True
    chosen = recipe(options.pop("recipe"))
    print(train(chosen, options.pop("out"), options.pop("prose"), **options))


if __name__ == "__main__":
    main()
