"""Weights whose zeros have a structure, and numbers that are the same for ever."""

import math

import numpy as np
import torch


def structured(rows=60, columns=80, seed=0, rates=None):
    """Weights in {-2, -1, 0, 1, 2}, with dense and dead rows and columns and signs by column."""
    rng = np.random.default_rng(seed)
    row = rng.random(rows) ** 4 if rates is None else rates
    column = rng.random(columns) ** 3
    flags = rng.random((rows, columns)) < 2.5 * np.outer(row, column)
    sign = np.where(rng.random((rows, columns)) < 0.9, 1, -1) * rng.choice([-1, 1], columns)
    return torch.from_numpy(flags * sign * rng.integers(1, 3, (rows, columns))).float()


def hashed(*shape, salt):
    """Numbers in [0, 1) by integer arithmetic alone (splitmix64): the same for ever."""
    x = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(salt << 32)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (x >> np.uint64(40)).reshape(shape) / 2.0**24
