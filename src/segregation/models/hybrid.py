"""One hybrid language model, seen through NNsight in one vocabulary."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from nnsight.intervention.envoy import traceable
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor, nn

from segregation.errors import FamilyError
from segregation.models.continuing import keep_convolutions_going
from segregation.models.decoding import check_decoding, check_length, check_padding, check_prompt_lengths
from segregation.models.family import Family, LayerType, family_of, layer_types_of
from segregation.models.inputs import as_text, spans_of
from segregation.models.memory import Held, Memory, forget_states, held_states, hold_states
from segregation.models.padding import keep_padding_out
from segregation.models.parts import Parts, layers_of
from segregation.models.positions import Run, cache_of, forward_arguments
from segregation.models.scan_choice import use_scans
from segregation.models.structure import check_structure
from segregation.prompts.sample import Sample
from segregation.prompts.spans import TokenSpans

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@runtime_checkable
class Intervention(Protocol):
    """Anything that can be stored on a model; a ``Plan`` is one."""

    def enter(self, model: "HybridModel") -> "HybridModel":
        """A model on which this intervention acts; the given one stays as it is."""
        ...


class HybridModel(Parts):
    """A causal language model with attention and recurrent layers; anything NNsight can do works on it.

    ``trace`` runs one forward, ``generate`` generates; both take text, token ids, encodings or ``Sample``s, reset
    module-held state first, and know which position every token has. ``intervene(plan)`` gives a model on which a plan
    acts before any block of yours. Layers and heads are counted from 0; a layer is its absolute index.

    Raises:
        FamilyError: not a hybrid of a known family, or the family's modules are not where its data says.
    """

    def __init__(
        self,
        module: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        description: Mapping[str, Any] | None = None,
    ) -> None:
        config = module.config
        self.family: Family = family_of(config)
        self.layer_types: tuple[LayerType, ...] = layer_types_of(config)
        self.carried: tuple[Intervention, ...] = ()
        self.run = Run()
        self.can_batch = True
        self.can_fork = True
        placement: dict[str, Any] = {} if getattr(module, "hf_device_map", None) else {"device": module.device}
        super().__init__(module.eval(), task="text-generation", tokenizer=tokenizer, **placement)
        self.attention_layers = layers_of(self.layer_types, "attention")
        self.recurrent_layers = layers_of(self.layer_types, "recurrent")
        if self.family.scan == "lightning" and not self.attention_layers:
            raise FamilyError(f"{self.family.name} without any attention layer is not handled: its cache has no length")
        check_structure(self.family, self.layer_types, self.attention, self.mixer)
        self.n_layers = len(self.layer_types)
        self.n_heads: int = config.num_attention_heads if self.attention_layers else 0
        self.d_head: int = self._d_head()
        self.d_model: int = config.hidden_size
        self.d_vocab: int = config.vocab_size
        self.window: int | None = getattr(config, self.family.window) if self.family.window else None
        self.max_positions: int | None = self._max_positions()
        self.description: dict[str, Any] = {"family": self.family.name, **(description or {})}
        self._mixers: list[nn.Module] = [self.mixer(layer)._module for layer in self.recurrent_layers]
        use_scans(self, "fast")
        if self.family.held_states:
            keep_convolutions_going(module, self._mixers)
        if self._has_own_cache:
            from segregation.models.caches import use_own_cache

            use_own_cache(module, self.new_cache, self.family.cache)
        if self.family.padded_inputs and self._mixers:
            keep_padding_out(
                module, [mixer.get_submodule(name) for mixer in self._mixers for name in self.family.padded_inputs]
            )

    # -- running ---------------------------------------------------------------------------------------------------

    def intervene(self, plan: Intervention) -> "HybridModel":
        """A model on which ``plan`` acts in every trace and generation; plans stack; this model stays clean."""
        edited = plan.enter(self)
        edited.carried = (*self.carried, plan)
        return edited

    def trace(
        self,
        *inputs: Any,
        prompt_lengths: Sequence[int] | Tensor | None = None,
        spans: Sequence[TokenSpans | None] | None = None,
        fn: Any = None,
        **kw: Any,
    ) -> Any:
        """One forward pass, as NNsight's ``trace``.

        Args:
            *inputs: text, token ids, an encoding, a ``Sample`` or a list of one of these.
            prompt_lengths: tokens of the prompt in each row, when the rows go on after it (teacher forcing): later
                positions are then ``DECODE``. Left out, all of a row is prompt.
            spans: the named spans of each row, for rules about tokens, when the inputs are token ids; a ``Sample``
                brings its own.
            fn: what to run, as in NNsight.
            **kw: passed on to NNsight and the model.

        Raises:
            ModelError: prompt lengths that are not one for each row, or not 1 to the row's tokens.
        """
        if fn is None:
            fn = functools.partial(self._call, prompt_lengths=prompt_lengths, spans=spans)
        return super().trace(*inputs, fn=fn, **kw)

    @traceable
    def generate(self, *inputs: Any, **kwargs: Any) -> Any:
        """Generate through transformers, as NNsight's ``generate``; the prompt is what is given.

        Raises:
            ModelError: a prompt that does not fit with its new tokens or is padded at the right, or a way of decoding
                that feeds several tokens to a filled cache (chunked prefill, assisted decoding, and beams where the
                family cannot move them).
        """
        check_decoding(self.family, kwargs.get("generation_config") or self.hf_model.generation_config, kwargs)
        arguments = forward_arguments(self._module, inputs, kwargs)
        check_padding(arguments.get("attention_mask"))
        lengths = self.begin(arguments)
        new = kwargs.get("max_new_tokens") or self.hf_model.generation_config.max_new_tokens or 1
        self.check_length(int(lengths.max()), new)
        if self._has_own_cache and kwargs.get("use_cache", True):
            kwargs.setdefault(self.family.cache, self.new_cache())
        kwargs.setdefault("disable_compile", True)  # transformers compiles some caches' models by itself on a GPU
        return TransformersModel.generate(self, *inputs, **kwargs)

    def begin(
        self,
        arguments: Mapping[str, Any],
        prompt_lengths: Sequence[int] | Tensor | None = None,
        spans: Sequence[TokenSpans | None] | None = None,
    ) -> Tensor:
        """Start a run: forget module-held state, set every row's prompt length and spans, and return the lengths.

        State is kept where the caller brings a filled cache, since it belongs to it. Spans that are not given are those
        of the samples that the run was started with.
        """
        ids = arguments.get("input_ids")
        ids = arguments["inputs_embeds"] if ids is None else ids
        cache, mask = cache_of(arguments), arguments.get("attention_mask")
        past = cache.get_seq_length() if cache is not None else 0
        if not past:
            self.reset()
        if isinstance(mask, Tensor) and mask.dim() == 2:
            lengths = mask.long().sum(-1)
        else:
            lengths = torch.full((ids.shape[0],), past + ids.shape[1], device=ids.device)
        if prompt_lengths is not None:
            given = torch.as_tensor(prompt_lengths, device=ids.device)
            if not past:
                check_prompt_lengths(given, lengths.to(ids.device))
            lengths = given.expand(ids.shape[0])
        self.run.start(lengths, self.run.coming if spans is None else spans)
        return lengths

    def reset(self) -> None:
        """Forget what a run left on the modules; every run does this first."""
        forget_states(self._mixers, self.family.held_states)

    def remember(self, cache: Any, lengths: Tensor) -> Memory:
        """What the model remembers now: this cache, and the states on its modules."""
        held: Held = held_states(self._mixers, self.family.held_states)
        return Memory(cache, held, lengths)

    def recall(self, memory: Memory) -> Any:
        """Put a memory's states back on the modules and return its cache, to be filled further."""
        hold_states(self._mixers, self.family.held_states, memory.held)
        return memory.cache

    def new_cache(self) -> Any:
        """An empty cache for this model."""
        from transformers import DynamicCache

        from segregation.models.caches import CountingCache, LightningCache

        if not self.attention_layers:
            return CountingCache(config=self.hf_model.config)
        if self.family.scan == "lightning":
            return LightningCache(self.attention_layers[0])
        return DynamicCache(config=self.hf_model.config)

    @property
    def _has_own_cache(self) -> bool:
        """Whether the cache that transformers makes for it would miscount tokens, so that another is made here."""
        return not self.attention_layers or self.family.scan == "lightning"

    @property
    def hf_model(self) -> "PreTrainedModel":
        """The wrapped transformers model."""
        return cast("PreTrainedModel", self._module)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens after which generation stops."""
        ends: int | list[int] | None = self.hf_model.generation_config.eos_token_id
        return () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)

    # -- inputs ----------------------------------------------------------------------------------------------------

    def encode(self, prompt: "Sample | str") -> list[int]:
        """Token ids of a prompt, with the tokenizer's own special tokens."""
        assert self.tokenizer is not None
        return self.tokenizer(prompt.prompt if isinstance(prompt, Sample) else prompt)["input_ids"]

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of a text that goes on after a prompt: no special tokens."""
        assert self.tokenizer is not None
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """Refuse a prompt that does not fit with its new tokens.

        Raises:
            ModelError: more positions than the model takes, with the numbers.
        """
        check_length(self.description.get("name", self.family.name), self.max_positions, prompt_tokens, new_tokens)

    # -- sizes -----------------------------------------------------------------------------------------------------

    def _d_head(self) -> int:
        """From what the output projection takes, as configs name it in several ways, or not at all."""
        if not self.attention_layers:
            return 0
        return int(self.out_proj(self.attention_layers[0])._module.in_features) // self.n_heads

    def _max_positions(self) -> int | None:
        if self.family.max_positions:
            return int(getattr(self.hf_model.config, self.family.max_positions))
        limit = getattr(self.tokenizer, "model_max_length", None)
        return int(limit) if limit is not None and limit < 10**9 else None

    # -- hooks into a run ------------------------------------------------------------------------------------------

    def _call(self, *inputs: Any, prompt_lengths: Any = None, spans: Any = None, **kwargs: Any) -> Any:
        self.begin(forward_arguments(self._module, inputs, kwargs), prompt_lengths, spans)
        return super()._call(*inputs, **kwargs)

    def _batch_size(self, *inputs: Any, **kwargs: Any) -> int:
        return super()._batch_size(*as_text(inputs), **kwargs)

    def _batch(self, invokes: list[Any], fn: Any) -> tuple[Any, Any]:
        if not invokes:
            return (), {}
        self.run.coming = [
            spans
            for inputs, kwargs in invokes
            for spans in spans_of(self.tokenizer, inputs) or [None] * self._batch_size(*inputs, **kwargs)
        ]
        return super()._batch([(as_text(inputs), kwargs) for inputs, kwargs in invokes], fn)
