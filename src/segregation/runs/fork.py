"""How a prompt that has been read once is gone on from, in many rows and any number of times."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from segregation.errors import ModelError, PlanError, SampleError
from segregation.interventions.apply import enter
from segregation.interventions.rules import Plan
from segregation.interventions.tables import compile_plans
from segregation.models.channels import RECURRENT_CHANNELS, Channel, read_channel
from segregation.models.checks_outcome import check_can_fork
from segregation.models.growing import make_room
from segregation.models.hybrid import HybridModel
from segregation.models.inputs import check_rows, check_token_ids
from segregation.models.memory import Memory, assemble, merge
from segregation.prompts.sample import Sample
from segregation.prompts.spans import TokenSpans
from segregation.runs.fitting import CPU_TOKENS, on_cpu
from segregation.runs.generate import checked_spans, encode_checked, listed, whole_plan
from segregation.runs.launch import Prompt, prefill
from segregation.runs.prefill import goes_on
from segregation.runs.witness import Written, check_read
from segregation.shapes import Tokens


@dataclass(frozen=True, eq=False)
class Fork:
    """Prompts that were read in part; going on from them leaves what is remembered as it is.

    Everything that goes on starts from a copy, so a fork can be used again, in any order. Tokens are fed one at a time,
    which is exact in every family, or several where a self-check of the model found that to give the same (on a CPU,
    without a plan, in rows of one length). A plan acts by position, as in ``generate``: the phases are those of the
    whole prompts, wherever they were cut.

    Attributes:
        model: what read them.
        prompts: the token ids of each row's whole prompt.
        memory: what the model remembers of each row.
        plan: what acts on what is read.
        spans: the named spans of each row, where a rule names any.
    """

    model: HybridModel
    prompts: tuple[Prompt, ...]
    memory: Memory
    plan: Plan
    spans: tuple[TokenSpans | None, ...]

    @property
    def read(self) -> tuple[int, ...]:
        """How many tokens of each row have been read: its positions 0 to this, not included."""
        return tuple(self.memory.lengths.tolist())

    def expand(self, rows: Sequence[int]) -> "Fork":
        """A fork with these rows of this one, repeated or dropped.

        Raises:
            ModelError: no rows, or a row that there is not.
        """
        rows = check_rows(rows, len(self.prompts))
        return self._with_rows(rows, self.memory.select(self._index(rows)).trimmed())

    def remembered(self, layer: int, channel: Channel, rows: Sequence[int]) -> Tensor | None:
        """A copy of what a layer remembers of these rows through a channel; ``None`` where it remembers nothing so.

        Keys and values are aligned at their right end, as those of a left-padded batch.

        Raises:
            ModelError: no rows, or a row that there is not.
        """
        rows = check_rows(rows, len(self.prompts))
        own = read_channel(self.model, self.memory.cache, layer, channel, self.memory.held)
        return None if own is None else own[rows]

    def mixed(self, rows: Mapping[Channel, Sequence[int]]) -> "Fork":
        """A fork whose i-th row has each channel of its memory from a row of its own: ``rows[channel][i]``.

        What is not in the memory is that of the row whose keys it has. A channel that the model has no layers for has
        no effect. One token is fed to a copy, to see that every layer reads what was put there (not where the model
        carries plans, which may change what a layer reads).

        Raises:
            ModelError: a channel left out, as many rows not named for each, rows that have not read as many tokens of
                prompts as long, keys and values from other rows where a family keeps them in one, or a layer that reads
                something else.
        """
        if missing := {"keys", "values", "recurrent", "conv"} - set(rows):
            raise ModelError(f"each channel's rows must be named, and these are not: {', '.join(sorted(missing))}")
        rows = {channel: check_rows(of, len(self.prompts)) for channel, of in rows.items()}
        if len({len(of) for of in rows.values()}) > 1:
            raise ModelError(
                "a memory is mixed from as many rows for each channel, got "
                + ", ".join(f"{len(of)} for {channel}" for channel, of in rows.items())
            )
        if "keys" in self.model.family.cannot and rows["keys"] != rows["values"]:
            raise ModelError(f"keys and values come from the same rows here: {self.model.family.cannot['keys']}")
        read = self.read
        for i, together in enumerate(zip(*rows.values(), strict=True)):
            if len({(read[row], len(self.prompts[row])) for row in together}) > 1:
                raise ModelError(
                    f"a memory is mixed from rows that have read as many tokens of prompts as long; row {i} is mixed "
                    f"from {[f'{read[row]} of {len(self.prompts[row])}' for row in together]}"
                )
        parts = {channel: self.memory.select(self._index(of)) for channel, of in rows.items()}
        memory = assemble(keys=parts["keys"], values=parts["values"], recurrent=parts["recurrent"], conv=parts["conv"])
        found = self._with_rows(rows["keys"], memory.trimmed())
        width = int(found.memory.lengths.max())

        def written(layer: int, channel: Channel) -> Tensor | None:
            own = self.remembered(layer, channel, rows[channel])
            return own if own is None or channel in RECURRENT_CHANNELS else own[..., -width:, :]

        if not self.model.carried:
            found._see_read(written)
        return found

    def read_on(self, tokens: Tokens) -> "Fork":
        """A fork that has read these too, as many in each row.

        Raises:
            ModelError: not a tensor of token ids with one row for each row, or more positions than the model takes.
        """
        return replace(self, memory=self._feed(tokens, lambda logits: None, several=True))

    def logits(self, tokens: Tokens) -> Float[Tensor, "batch pos d_vocab"]:
        """The logits after each of these tokens, of which there are as many in each row.

        Raises:
            ModelError: not a tensor of token ids with one row for each row, or more positions than the model takes.
        """
        found: list[Tensor] = []
        self._feed(tokens, found.append)
        return torch.stack(found, dim=1)

    def _at_once(self) -> int:
        """How many tokens of each row are fed in one forward where nobody looks at the logits in between."""
        model, read = self.model, self.read
        if self.plan.rules or model.carried or len(set(read)) > 1 or not on_cpu(model) or not goes_on(model):
            return 1
        return max(1, CPU_TOKENS // len(read))

    def _feed(
        self, tokens: Tokens, see: Callable[[Float[Tensor, "batch d_vocab"]], object], several: bool = False
    ) -> Memory:
        model, start = self.model, self.memory.lengths
        check_token_ids(tokens, len(self.prompts), model.d_vocab)
        tokens = tokens.to(start.device)
        model.check_length(int(start.max()), tokens.shape[1])
        rows = torch.arange(len(start), device=start.device)
        memory = self.memory.select(rows)  # a copy: layers update their states in place
        width, steps = int(start.max()), tokens.shape[1]
        at_once = self._at_once() if several and steps > 1 else 1
        mask = torch.arange(width + steps, device=start.device) >= width - start[:, None]
        padded = not bool(mask.all())
        edited = enter(model, self.plan)
        kept: list[Memory] = []

        def loop() -> None:
            model.reset()
            cache = model.recall(memory)
            make_room(cache, steps)
            lengths = torch.tensor([len(prompt) for prompt in self.prompts], device=start.device)
            model.run.start(lengths, self.spans)
            for number in range(0, steps, at_once):
                fed = torch.arange(number, min(number + at_once, steps), device=start.device)
                see(
                    model.hf_model(
                        input_ids=tokens[:, fed],
                        attention_mask=mask[:, : width + number + 1].long() if padded else None,
                        position_ids=start[:, None] + fed,
                        past_key_values=cache,
                        use_cache=True,
                        logits_to_keep=1,
                    ).logits[:, -1]
                )
            kept.append(model.remember(cache, start + steps))

        try:
            with torch.no_grad():
                edited.interleave(loop)
        finally:
            model.reset()
        return kept[0]

    def _see_read(self, written: Written) -> None:
        rows = range(len(self.prompts))
        tokens = [prompt[min(read, len(prompt) - 1)] for prompt, read in zip(self.prompts, self.read, strict=True)]
        check_read(self.model, self.memory.select(self._index(rows)), self._index(tokens), written)

    def _with_rows(self, rows: Sequence[int], memory: Memory) -> "Fork":
        return replace(
            self,
            prompts=tuple(self.prompts[row] for row in rows),
            spans=tuple(self.spans[row] for row in rows),
            memory=memory,
        )

    def _index(self, rows: Sequence[int]) -> Int[Tensor, " rows"]:
        return torch.tensor(list(rows), device=self.memory.lengths.device)


def fork(
    model: HybridModel,
    samples: Sample | Iterable[Sample],
    n_tokens: int | Sequence[int] | None = None,
    *,
    plan: Plan = Plan(),  # noqa: B008 (a frozen value)
) -> Fork:
    """Read prompts once, or the first tokens of them, to go on from there any number of times.

    Args:
        model: the model; plans that it carries act as well.
        samples: whose prompts are read, in one batch.
        n_tokens: how many tokens of each are read, or one number for all; left out, all but the last, whose logits are
            the first that ``generate`` would look at.
        plan: acts on what is read now, and on what is read on.

    Raises:
        ModelError: the model's self-checks switched forks off, or batches of prompts that differ in length.
        PlanError: a plan that is impossible on this model.
        SampleError: a prompt that does not fit, has no such number of tokens, or lacks a span that a rule names.
    """
    if isinstance(n_tokens, Plan):
        raise PlanError(
            "fork takes how many tokens to read before the plan; give the plan by name: fork(..., plan=plan)"
        )
    samples, _ = listed(samples, plan)
    if not samples:
        raise SampleError("there is nothing to read: give at least one sample")
    acted = whole_plan(model, plan)
    compile_plans(model, [acted])  # refuse before anything runs
    prompts = tuple(encode_checked(model, sample, 1) for sample in samples)
    spans = tuple(
        checked_spans(model, sample, len(prompt), [acted]) for sample, prompt in zip(samples, prompts, strict=True)
    )
    given = [n_tokens] * len(prompts) if isinstance(n_tokens, int) else n_tokens
    read = [len(prompt) - 1 for prompt in prompts] if given is None else list(given)
    if len(read) != len(prompts):
        raise SampleError(f"n_tokens needs a number for each of the {len(prompts)} samples, got {len(read)}")
    for sample, prompt, n in zip(samples, prompts, read, strict=True):
        if not 1 <= n <= len(prompt):
            raise SampleError(f"sample {sample.id!r} has {len(prompt)} tokens, so 1 to as many can be read; got {n}")
    return read_first(model, prompts, spans, read, plan)


def read_first(
    model: HybridModel,
    prompts: Sequence[Prompt],
    spans: Sequence[TokenSpans | None],
    read: Sequence[int],
    plan: Plan,
) -> Fork:
    """The fork of token ids of which the first ``read`` are read in one batch; only the model is checked.

    Raises:
        ModelError: the model's self-checks switched forks off, or batches of prompts that differ in length.
    """
    check_can_fork(model)
    if len(set(read)) > 1 and not model.can_batch:
        raise ModelError(
            f"{model.description.get('name', model.family.name)} gets padded batches wrong (its self-checks switched "
            f"batching off), and these prompts are read to {sorted(set(read))} tokens; fork them one by one"
        )
    with torch.no_grad():
        memory = prefill(model, prompts, [plan] * len(prompts) if plan.rules else (), spans, read=read)
    model.reset()
    return Fork(model, tuple(prompts), memory, plan, tuple(spans))


def join(forks: Sequence[Fork]) -> Fork:
    """One fork with the rows of several of the same model and plan, one after the other.

    Raises:
        ModelError: no forks, forks of another model or plan, or rows of different lengths where the model's self-checks
            switched batching off.
    """
    if not forks or any(one.model is not forks[0].model or one.plan != forks[0].plan for one in forks):
        raise ModelError("forks are joined where they are of one model under one plan; give one or more of these")
    if not forks[0].model.can_batch and len({n for one in forks for n in one.read}) > 1:
        raise ModelError("the model's self-checks switched batching off, so rows of different lengths stay apart")
    return replace(
        forks[0],
        prompts=tuple(prompt for one in forks for prompt in one.prompts),
        spans=tuple(spans for one in forks for spans in one.spans),
        memory=merge([one.memory for one in forks]),
    )
