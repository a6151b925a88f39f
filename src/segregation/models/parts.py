"""Where the parts of a hybrid are, and what a trace can read of them."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from einops import rearrange
from jaxtyping import Float
from nnsight.modeling.transformers import TransformersModel
from torch import Tensor

from segregation.errors import ModelError
from segregation.models.attention import AttentionCall
from segregation.models.family import Family, LayerType
from segregation.models.positions import Run
from segregation.models.states import RecurrentState, recurrent_state
from segregation.shapes import Pattern, Z

Part = Literal["attention", "recurrent"]
"""One of the two ways in which a layer may mix positions."""

_WITH: Mapping[Part, tuple[LayerType, ...]] = {
    "attention": ("attention", "hybrid"),
    "recurrent": ("recurrent", "hybrid"),
}


def layers_of(layer_types: tuple[LayerType, ...], part: Part) -> tuple[int, ...]:
    """The layers that have attention, or a recurrent mixer; one may have both.

    >>> layers_of(("recurrent", "hybrid", "mlp", "attention"), "attention")
    (1, 3)
    """
    return tuple(layer for layer, kind in enumerate(layer_types) if kind in _WITH[part])


class Parts(TransformersModel):
    """What every hybrid has, in one vocabulary; ``HybridModel`` is one that can be run.

    Attributes:
        family: its family.
        layer_types: what each layer mixes positions with.
        n_heads: query heads of an attention layer.
        run: bookkeeping of the run in progress.
    """

    family: Family
    layer_types: tuple[LayerType, ...]
    n_heads: int
    run: Run

    # -- what a trace can read -------------------------------------------------------------------------------------

    def z(self, layer: int) -> Z:
        """Per-head output of an attention layer before its output projection; a view, so it can be edited in place.

        Where the family gates attention's output, z is what comes out of the gate.
        """
        return rearrange(
            self.out_proj(layer).input, "batch pos (head d_head) -> batch pos head d_head", head=self.n_heads
        )

    def pattern(self, layer: int) -> Pattern:
        """Attention probabilities of a layer in fp32, as a plan's token rules left them; read it before ``z``."""
        return self.attention_call(layer).pattern(self.run.edits_of(layer))

    def attention_call(self, layer: int) -> AttentionCall:
        """What the attention call of a layer is given: queries, cached keys and values, mask, scaling, window."""
        args, kwargs = self._attention_op(layer).inputs
        return AttentionCall.of(args, kwargs)

    def attention_output(self, layer: int) -> tuple[Float[Tensor, "batch pos head d_value"], Tensor | None]:
        """What the attention call of a layer returns: values mixed per head, and weights where it is eager."""
        mixed, weights = self._attention_op(layer).output
        return mixed, weights

    def set_attention_output(self, layer: int, mixed: Tensor, weights: Tensor | None) -> None:
        """Put something else in the place of what the attention call of a layer returns."""
        self._attention_op(layer).output = (mixed, weights)

    def state(self, layer: int) -> RecurrentState:
        """What a recurrent layer remembers after this forward's tokens.

        Raises:
            ModelError: a layer without a recurrent mixer, or a run without a cache, which keeps no state.
        """
        return recurrent_state(self.mixer(layer), self.family, layer)

    # -- where things are ------------------------------------------------------------------------------------------

    def in_order(self, layers: Iterable[int]) -> list[tuple[int, Part]]:
        """What these layers mix positions with, in the order it runs: pairs of a layer and one of its parts.

        A layer that has both stands there twice, one without either not at all.
        """
        parts: tuple[Part, ...] = ("attention", "recurrent")
        in_hybrid = parts if self.family.first == "attention" else parts[::-1]
        return [
            (layer, part)
            for layer in layers
            for part in (in_hybrid if self.layer_types[layer] == "hybrid" else parts)
            if layer in layers_of(self.layer_types, part)
        ]

    def attention(self, layer: int) -> Any:
        """The attention module of a layer with attention.

        Raises:
            ModelError: no such layer, or one without attention.
        """
        self._check_layer(layer, "attention")
        return self._layer(layer).get(self.family.attention)

    def mixer(self, layer: int) -> Any:
        """The recurrent mixer of a layer with one.

        Raises:
            ModelError: no such layer, or one without a recurrent mixer.
        """
        self._check_layer(layer, "recurrent")
        is_hybrid = self.layer_types[layer] == "hybrid" and self.family.hybrid_mixer
        return self._layer(layer).get(self.family.hybrid_mixer if is_hybrid else self.family.mixer)

    def out_proj(self, layer: int) -> Any:
        """The output projection of an attention layer; its input is ``z``, heads side by side."""
        return self.attention(layer).get(self.family.out_proj)

    def _attention_op(self, layer: int) -> Any:
        return getattr(self.attention(layer).source, self.family.attention_call)

    def _layer(self, layer: int) -> Any:
        return self.get(self.family.layers)[layer]

    def _check_layer(self, layer: int, part: Part) -> None:
        there = layers_of(self.layer_types, part)
        if layer not in there:
            got = self.layer_types[layer] if 0 <= layer < len(self.layer_types) else "absent"
            raise ModelError(f"layer must be one of the {part} layers {list(there)}, got {layer}, which is {got}")
