"""The type checks of the test run at less cost: functions that name no shape are checked by beartype alone.

``--jaxtyping-packages`` puts ``jaxtyping.jaxtyped`` around every function, to compare shapes at each call, also where
there are none to compare: 44 % of the time of ``tests/runs/test_generate.py``. Imported before the package is.
"""

import inspect
import typing
from typing import Any, Literal

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped


def has_shape(hint: Any) -> bool:
    """Whether a hint is, holds or may stand for a tensor type with a shape; one that is still text may."""
    if isinstance(hint, str | typing.ForwardRef | typing.TypeVar):
        return True
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    if typing.get_origin(hint) is Literal:
        return False
    held = hint if isinstance(hint, list) else typing.get_args(hint)  # a list: the arguments of a Callable
    return any(map(has_shape, held))


def jaxtyped(function: Any = None, *, typechecker: Any = None) -> Any:
    """In the place of ``jaxtyping.jaxtyped``; classes, whose fields may have shapes, are left to it."""
    if function is None:
        return lambda function: jaxtyped(function, typechecker=typechecker)
    if not inspect.isfunction(function):
        return _jaxtyped(function, typechecker=typechecker)
    if any(map(has_shape, inspect.get_annotations(function).values())):
        return _jaxtyped(function, typechecker=typechecker)
    return beartype(function)


jaxtyping.jaxtyped = jaxtyped
