"""The type checks of the test run at less cost: beartype alone, and shapes compared only where there are any.

``--jaxtyping-packages`` puts ``jaxtyping.jaxtyped`` around every function. Around one with a type checker it binds the
arguments of each call by their signature and checks them twice, once more beside what is returned. Here a function that
names shapes runs in jaxtyping's context, where axes of one name agree, and beartype checks everything once; one that
names none needs no context. Imported before the package is.
"""

import functools
import inspect
import typing
from collections.abc import Sequence
from typing import Any, Literal

import jaxtyping
from beartype import beartype

_jaxtyped = jaxtyping.jaxtyped
_context = _jaxtyped("context")


def has_shape(hint: Any) -> bool:
    """Whether a hint is, holds or may stand for a tensor type with a shape."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return isinstance(hint, str | typing.ForwardRef | typing.TypeVar) or any(map(has_shape, held_by(hint)))


def held_by(hint: Any) -> Sequence[Any]:
    """The types that a hint is made of."""
    if typing.get_origin(hint) is Literal:
        return ()
    return hint if isinstance(hint, list) else typing.get_args(hint)  # a list: the arguments of a Callable


def resolved(hint: Any, names: dict[str, Any]) -> Any:
    """A hint without text in it; anything, where a name in it is not there at run time."""
    holder = type("holder", (), {"__annotations__": {"hint": hint}})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["hint"]
    except NameError:
        return Any


def jaxtyped(function: Any = None, *, typechecker: Any = None) -> Any:
    """In the place of ``jaxtyping.jaxtyped``; to it are left classes, whose fields may have shapes, and generators.

    A hint that beartype does not take is found at the first call.
    """
    if function is None:
        return lambda function: jaxtyped(function, typechecker=typechecker)
    later = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    if not inspect.isfunction(function) or any(runs(inspect.unwrap(function)) for runs in later):
        return _jaxtyped(function, typechecker=typechecker)
    found: list[Any] = []

    @functools.wraps(function)
    def checked_from_its_first_call(*args: Any, **kwargs: Any) -> Any:
        if not found:  # by now its module has all its names; most functions are never called in a process
            own = inspect.get_annotations(function)
            function.__annotations__ = {name: resolved(hint, function.__globals__) for name, hint in own.items()}
            found.append(checked(function))
        return found[0](*args, **kwargs)

    return checked_from_its_first_call


def checked(function: Any) -> Any:
    """The function, its arguments and result checked by beartype; in one context of shapes, if it names any."""
    by_beartype = beartype(function)
    if not any(map(has_shape, inspect.get_annotations(function).values())):
        return by_beartype

    @functools.wraps(function)
    def in_one_context(*args: Any, **kwargs: Any) -> Any:
        with _context:
            return by_beartype(*args, **kwargs)

    return in_one_context


jaxtyping.jaxtyped = jaxtyped
