"""Types and shapes of every call into swsmix are checked, at half the price of jaxtyping's own way.

jaxtyping's import hook decorates every function so that its arguments are bound, checked, and
checked again with what is returned; that took more than half of the tests' time. Here beartype
checks each call once, and only annotations that name axes get a table of the axes' sizes. The hook
decorates inner functions too, each time that one is made: the check is made once for their code.
"""

import dataclasses
import functools
import inspect
import types
import typing
from typing import NamedTuple

import jaxtyping
import torch
from beartype import beartype
from jaxtyping import AbstractArray, install_import_hook

_jaxtyped = jaxtyping.jaxtyped


def install():
    """Check what is imported from swsmix from now on."""
    jaxtyping.jaxtyped = _decorator  # this is what the hook decorates with
    install_import_hook("swsmix", "beartype.beartype")


def _decorator(fn="context", *, typechecker=None):
    if fn == "context":
        return checked if typechecker is not None else _jaxtyped("context")
    return _jaxtyped(fn, typechecker=typechecker)


def checked(thing):
    """A function or a dataclass whose calls are checked."""
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing) and "__init__" in vars(thing):
            thing.__init__ = checked(thing.__init__)
        return thing
    code = id(thing.__code__)
    if code not in _checks:
        _checks[code] = _check(thing)
    check = _checks[code]
    cheap = check.of(thing)
    if thing.__name__ == "forward":
        cheap = _or_traced(thing, cheap)
    if cheap is thing or not check.axes:
        return cheap

    @functools.wraps(thing)
    def wrapper(*args, **kwargs):
        __tracebackhide__ = True
        with _jaxtyped("context"):
            return cheap(*args, **kwargs)

    return wrapper


class _Check(NamedTuple):
    """What checks the functions of one piece of code: an inner function is made at every call."""

    twin: types.FunctionType  # of that code, without what an inner function closes over
    checking: types.FunctionType  # what beartype makes of it
    hints: dict
    axes: bool  # whether a hint names axes

    def of(self, thing):
        if self.checking is self.twin:  # nothing to check
            return thing
        made = types.FunctionType(self.checking.__code__, self.checking.__globals__)
        given = self.checking.__kwdefaults__.items()  # the function is one of them
        made.__kwdefaults__ = {n: thing if each is self.twin else each for n, each in given}
        functools.update_wrapper(made, thing)
        made.__annotations__ = self.hints
        return made


_checks = {}


def _check(thing):
    written = thing.__annotations__
    hints = {name: _hint(each, thing.__globals__) for name, each in written.items()}
    cells = tuple(types.CellType() for _ in thing.__code__.co_freevars)
    twin = types.FunctionType(
        thing.__code__, thing.__globals__, thing.__name__, thing.__defaults__, cells
    )
    twin.__kwdefaults__, twin.__module__ = thing.__kwdefaults__, thing.__module__
    twin.__annotations__ = hints
    return _Check(twin, beartype(twin), hints, any(map(_names_axes, hints.values())))


def _or_traced(thing, checking):
    """A network's forward pass: unchecked where torch.fx traces it, with proxies for tensors."""

    @functools.wraps(thing)
    def wrapper(*args, **kwargs):
        __tracebackhide__ = True
        traced = any(isinstance(each, torch.fx.Proxy) for each in args)
        return (thing if traced else checking)(*args, **kwargs)

    return wrapper


def _hint(written, names):
    """What an annotation in quotes means; Any if it names what is imported for type checkers."""
    holder = type("holder", (), {"__annotations__": {"it": written}})
    try:
        return typing.get_type_hints(holder, names, include_extras=True)["it"]
    except Exception:
        return typing.Any


def _names_axes(hint):
    if inspect.isclass(hint) and issubclass(hint, AbstractArray):
        return True
    return any(map(_names_axes, typing.get_args(hint)))
