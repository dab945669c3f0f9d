"""The recursions of the certification, written out: numba and Triton compile these same lines.

`taylor` has them as loops over tensors, for polynomials of any order.
"""

from __future__ import annotations

from swsmix.tables.taylor import ORDER

assert ORDER == 6, "derivatives 0 .. 7 are written out"


def derivatives(h0, u, v):
    """Derivatives 1 .. 7 of h0 exp(u t + v t^2 / 2) at 0."""
    h1 = u * h0
    h2 = u * h1 + v * h0
    h3 = u * h2 + 2.0 * v * h1
    h4 = u * h3 + 3.0 * v * h2
    h5 = u * h4 + 4.0 * v * h3
    h6 = u * h5 + 5.0 * v * h4
    return h1, h2, h3, h4, h5, h6, u * h6 + 6.0 * v * h5


def cumulants(q1, q2, q3, q4, q5, q6, q7, sign):
    """Cumulants 3 .. 7 from moments for sign -1; with sign 1, terms add up that cancel there."""
    c3 = q3 + sign * (q1 * q2 + 2.0 * q2 * q1)
    c4 = q4 + sign * (q1 * q3 + 3.0 * q2 * q2 + 3.0 * c3 * q1)
    c5 = q5 + sign * (q1 * q4 + 4.0 * q2 * q3 + 6.0 * c3 * q2 + 4.0 * c4 * q1)
    c6 = q1 * q5 + 5.0 * q2 * q4 + 10.0 * c3 * q3 + 10.0 * c4 * q2 + 5.0 * c5 * q1
    c6 = q6 + sign * c6
    c7 = q1 * q6 + 6.0 * q2 * q5 + 15.0 * c3 * q4 + 20.0 * c4 * q3 + 15.0 * c5 * q2 + 6.0 * c6 * q1
    return c3, c4, c5, c6, q7 + sign * c7


def quotients(
    a0, a1, a2, a3, a4, a5, a6, a7,
    q1, q2, q3, q4, q5, q6, q7, sign,
):  # fmt: skip
    """Derivatives 1 .. 7 of a / q at 0 from those of a and q, q = 1 there; sign as above."""
    d1 = a1 + sign * a0 * q1
    d2 = a2 + sign * (a0 * q2 + 2.0 * d1 * q1)
    d3 = a3 + sign * (a0 * q3 + 3.0 * d1 * q2 + 3.0 * d2 * q1)
    d4 = a4 + sign * (a0 * q4 + 4.0 * d1 * q3 + 6.0 * d2 * q2 + 4.0 * d3 * q1)
    d5 = a0 * q5 + 5.0 * d1 * q4 + 10.0 * d2 * q3 + 10.0 * d3 * q2 + 5.0 * d4 * q1
    d5 = a5 + sign * d5
    d6 = a0 * q6 + 6.0 * d1 * q5 + 15.0 * d2 * q4 + 20.0 * d3 * q3 + 15.0 * d4 * q2 + 6.0 * d5 * q1
    d6 = a6 + sign * d6
    d7 = a0 * q7 + 7.0 * d1 * q6 + 21.0 * d2 * q5 + 35.0 * d3 * q4
    d7 = a7 + sign * (d7 + 35.0 * d4 * q3 + 21.0 * d5 * q2 + 7.0 * d6 * q1)
    return d1, d2, d3, d4, d5, d6, d7
