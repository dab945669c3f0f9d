"""Small faults to put into a module: one operator, number, condition or statement changed."""

import ast
import contextlib
import copy
import dataclasses
import difflib
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change of one place; `new` is the text of the whole file."""

    path: Path
    function: str
    line: int
    new: str

    def __str__(self) -> str:
        old, new = self.path.read_text().splitlines(), self.new.splitlines()
        diff = [line for line in difflib.ndiff(old, new) if line.startswith(("-", "+"))]
        changed = [f"    {line}" for line in diff]
        return "\n".join([f"{os.path.relpath(self.path)}:{self.line}", *changed])


_OPERATORS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or,
    ast.Or: ast.And,
}  # fmt: skip
_SWAPS = [("min", "max"), ("amin", "amax"), ("argmin", "argmax"), ("minimum", "maximum")]
_SWAPS += [("any", "all"), ("floor", "ceil"), ("zeros", "ones"), ("zeros_like", "ones_like")]
_NAMES = dict(_SWAPS + [(new, old) for old, new in _SWAPS])


def _changed(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of `node`."""
    match node:
        case ast.Compare(ops=ops):
            for i, op in enumerate(ops):
                if type(op) in _OPERATORS:
                    yield _changed(node, ops=[*ops[:i], _OPERATORS[type(op)](), *ops[i + 1 :]])
        case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in _OPERATORS:
            yield _changed(node, op=_OPERATORS[type(op)]())
        case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
            yield operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
            yield ast.Constant(-value or -1.0)
        case ast.IfExp(test=test) if not _has_opposite(test):
            yield _changed(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.Slice(lower=lower, upper=upper):
            if lower is not None:
                yield _changed(node, lower=None)
            if upper is not None:
                yield _changed(node, upper=None)
        case ast.Name(id=name, ctx=ast.Load()) if name in _NAMES:
            yield _changed(node, id=_NAMES[name])
        case ast.Attribute(attr=name, ctx=ast.Load()) if name in _NAMES:
            yield _changed(node, attr=_NAMES[name])
        case ast.Expr(value=ast.Call() | ast.Yield()) | ast.AugAssign() | ast.Raise():
            yield ast.Pass()
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Delete():
            yield ast.Pass()
        case ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.Return(value=value) if value is not None and not _is_none(value):
            yield ast.Return(ast.Constant(None))


def _has_opposite(test: ast.AST) -> bool:
    """Whether swapping the operator negates the condition already."""
    opposites = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)
    not_twice = isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)
    return not_twice or (isinstance(test, ast.Compare) and isinstance(test.ops[-1], opposites))


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _places(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST, ast.AST]]:
    """Function, node and replacement; annotations, docstrings and texts of errors are skipped."""
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return
        case ast.Assign(targets=[ast.Name(id="__all__")]) | ast.JoinedStr():
            return
        case ast.keyword(arg="strict"):  # of zip: it guards against a programmer's slip
            return
        case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
            function = f"{function}.{name}".lstrip(".")
    for new in _changes(node):
        yield function, node, new
    if isinstance(node, ast.If | ast.While) and not _has_opposite(node.test):
        yield function, node.test, ast.UnaryOp(ast.Not(), node.test)
    if isinstance(node, ast.Raise) or _is_warning(node):
        return
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _places(child, function)


def _is_warning(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func).endswith("warn")


def _offset(lines: list[bytes], line: int, column: int) -> int:
    return sum(len(text) for text in lines[: line - 1]) + column


def mutants(path: Path) -> list[Mutant]:
    """Every mutant of a module, in the order of its text."""
    source = path.read_bytes()
    lines = source.splitlines(keepends=True)
    found = []
    for function, node, new in _places(ast.parse(source)):
        start = _offset(lines, node.lineno, node.col_offset)
        end = _offset(lines, node.end_lineno, node.end_col_offset)
        text = ast.unparse(ast.fix_missing_locations(new))
        if isinstance(node, ast.expr) and not isinstance(node, ast.Slice):
            text = f"({text})"
        mutated = source[:start] + text.encode() + source[end:]
        with contextlib.suppress(SyntaxError):  # a slice's bound in a match, a default's keyword
            ast.parse(mutated)
            found.append(Mutant(path, function, node.lineno, mutated.decode()))
    return found


def sample(found: Sequence[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` mutants spread evenly over the functions, in the order of the file."""
    rng = random.Random(seed)
    by_function: dict[tuple[Path, str], list[Mutant]] = {}
    for mutant in rng.sample(found, len(found)):
        by_function.setdefault((mutant.path, mutant.function), []).append(mutant)
    rounds = max(map(len, by_function.values()), default=0)
    spread = [group[i] for i in range(rounds) for group in by_function.values() if i < len(group)]
    return sorted(spread[:count], key=lambda mutant: (mutant.path, mutant.line))
