"""Which tensors gain by lengths in context: those that the file's coder codes in contexts.

The coder uses contexts where they save a hundredth of a tensor's bits. Here two numbers decide, of
the lengths that follow from the counts of each class: what classes of rows and columns save, less
what it takes to learn their lengths, and what another assignment saves of that at its price. Both
stand well apart: a tensor whose rows and columns are alike saves nothing by either, and keeps the
lengths of the whole tensor. Where they do not promise much, the coder itself is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from swsmix._progress import watched
from swsmix.codec.encoder import CONTEXT_BUDGET, is_large
from swsmix.codec.index import MAX_VALUES
from swsmix.compression.context_trial import is_smaller
from swsmix.compression.entropy_constrained import Codebook
from swsmix.compression.in_context import ClassCells, ContextBook
from swsmix.compression.matrices import Matrix

Books = Sequence[Codebook | ContextBook | None]

MIN_WEIGHTS = 4096  # lengths of fewer are not learned
_SAVED = 0.02  # of the bits, that classes save
_WORTH = 0.008  # of the bits, that another assignment saves; less is not worth a trial
_SURE = 0.02  # of the bits, that need no trial
_LOOK = 4  # weights looked at in vain count as a decision of the coder
_CELLS = 1 << 22  # of all tensors, which stay in memory: 100 MB


@torch.no_grad()
def cells_where_it_pays(
    state: Mapping[str, Tensor],
    matrices: Sequence[Matrix],
    books: Books,
    *,
    total: int,
    progress: bool = False,
) -> dict[int, ClassCells]:
    """The cells of the tensors in which lengths in context pay, in one pass over some.

    Args:
        state: name -> tensor.
        matrices: what is known of those to be quantised.
        books: their values, with lengths of whole tensors.
        total: how many numbers the file has.
        progress: show a progress bar.

    Returns:
        The number of a matrix -> its cells.
    """
    sparse_only, left = is_large(total), CONTEXT_BUDGET
    numbers = [
        i
        for i, (m, book) in enumerate(zip(matrices, books, strict=True))
        if isinstance(book, Codebook) and _may_pay(m, book, sparse_only=sparse_only)
    ]
    cells = dict[int, ClassCells]()
    for i in watched(numbers, "contexts", shown=progress, weight=lambda i: matrices[i].numel):
        m, book = matrices[i], books[i]
        assert isinstance(book, Codebook)
        needed = _decisions(m, book)
        if needed > left or sum(c.number for c in cells.values()) > _CELLS:
            continue
        t = state[m.names[0]].detach()
        seen = ClassCells(m, t, book)
        found, gain = _promise(seen, book)
        if gain < _WORTH:
            left -= m.numel // _LOOK
            continue
        left -= needed  # the coder has no time for more, nor a trial
        if gain >= _SURE or is_smaller(m, t, book, found):
            cells[i] = seen
    return cells


def _may_pay(m: Matrix, book: Codebook, *, sparse_only: bool) -> bool:
    """Whether the file's coder may code a tensor in contexts."""
    is_dense = float(book.bits.min()) > 1.0
    few = 2 <= len(book.values) <= MAX_VALUES
    return few and m.numel >= MIN_WEIGHTS and not (sparse_only and is_dense)


def _decisions(m: Matrix, book: Codebook) -> int:
    """What coding it in contexts takes: is it the commonest value, and if not, which?"""
    others = 1.0 - 2.0 ** -float(book.bits.min())
    return int(m.numel * (1.0 + others * len(book.values).bit_length()))


def _promise(cells: ClassCells, book: Codebook) -> tuple[ContextBook, float]:
    """Lengths in context, and what share of the bits they save by the counts."""
    found, plain = cells.fitted(book), cells.spent(book)
    if plain.bits - plain.in_context - plain.described < _SAVED * plain.bits:
        return found, 0.0
    again = cells.spent(found)
    gain = plain.in_context - again.in_context + (plain.error - again.error) / book.lam
    return found, gain / plain.bits
