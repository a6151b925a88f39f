"""Names of tensor axes and the tensor types built from them.

Legend: ``batch`` samples; ``pos`` token positions of one forward pass; ``dest``/``src`` positions that
attend and are attended to; ``head`` query heads; ``d_head``, ``d_model``, ``d_vocab`` widths.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
Positions = Int[Tensor, "batch pos"]
PromptLengths = Int[Tensor, " batch"]
PositionMask = Bool[Tensor, "batch pos"]
Pattern = Float[Tensor, "batch head dest src"]
LogPattern = Float[Tensor, "batch head dest src"]
Visible = Bool[Tensor, "#batch #head dest src"]
KeysAhead = Bool[Tensor, "batch #dest src"]
KeysLeft = Bool[Tensor, "batch #head dest src"]
RowMask = Bool[Tensor, "batch head dest"]
RowsChanged = Bool[Tensor, "batch #head dest"]
Z = Float[Tensor, "batch pos head d_head"]
HeadScores = Float[Tensor, "batch head pos"]
HeadMask = Bool[Tensor, "batch head pos"]
