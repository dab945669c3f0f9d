"""Cubics evaluated two numbers at a time, in loops that numba compiles.

What limits the loops over the weights is how often they read, and a processor reads two numbers
that lie side by side as fast as one. The compiler does not find these pairs by itself.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

_PAIR = ir.VectorType(ir.FloatType(), 2)
_FUSED = ("contract",)  # x * y + z is one operation


def _one(_context, pieces, place, x):
    def evaluate(context, builder, signature, values):
        low, high = _pairs(context, builder, signature, values, 2)
        x = values[2]
        even, odd = _numbers(builder, _add_product(builder, low, high, builder.fmul(x, x)))
        product = builder.fmul(odd, x, flags=_FUSED)
        return builder.fadd(even, product, flags=_FUSED)

    return types.float32(pieces, place, x), evaluate


def _two(_context, pieces, place, x):
    def evaluate(context, builder, signature, values):
        *lower, total = _pairs(context, builder, signature, values, 4)
        for each in reversed(lower):
            total = _add_product(builder, each, total, values[2])
        return context.make_tuple(builder, signature.return_type, _numbers(builder, total))

    return types.UniTuple(types.float32, 2)(pieces, place, x), evaluate


def _pairs(context, builder, signature, values, number):
    """So many pairs of numbers, from a place on."""
    data = make_array(signature.args[0])(context, builder, values[0]).data
    first = builder.bitcast(builder.gep(data, [values[1]]), _PAIR.as_pointer())
    places = (ir.Constant(ir.IntType(64), n) for n in range(number))
    return [builder.load(builder.gep(first, [place]), align=4) for place in places]


def _add_product(builder, low, high, x):
    """The pair low + high x; x is a number."""
    both = ir.Constant(_PAIR, ir.Undefined)
    for lane in range(2):
        both = builder.insert_element(both, x, ir.Constant(ir.IntType(32), lane))
    return builder.fadd(low, builder.fmul(high, both, flags=_FUSED), flags=_FUSED)


def _numbers(builder, pair):
    return [builder.extract_element(pair, ir.Constant(ir.IntType(32), n)) for n in range(2)]


# c0 + c1 x + c2 x^2 + c3 x^3 of the numbers c0, c1, c2, c3 from a place on (pieces, place, x).
cubic: Any = intrinsic(_one)
# Two cubics, whose coefficients lie there by turns: c0, a0, c1, a1, and so on.
two_cubics: Any = intrinsic(_two)
