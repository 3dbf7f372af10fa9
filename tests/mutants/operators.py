"""What a mutant changes: one place, as a slip of the pen might.

Most operators are mutmut's. Left out of those are what strict types catch already (``None`` for a value, an argument
too few) and texts. Added are the slips that this code promises to survive none of and that mutmut does not make:

- a statement is left out: a flush, a digest's update, a counter;
- two calls change places: the commit before its parts;
- a condition always holds, or never: a guard that does nothing;
- a keyword argument is left out, so that its default holds;
- a function is taken for its sibling: a sum for a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import libcst as cst
import libcst.matchers as m
from mutmut.mutation import mutators

Operator = Callable[[Any], Iterable[cst.CSTNode]]

_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list"}
_ATTRIBUTES = {"min": "max", "max": "min", "any": "all", "all": "any", "sum": "mean", "mean": "sum"}
_CALL = m.Call() | m.Await(m.Call())
# Without one of these the code still runs. What only raises, yields or returns is the business of the conditions.
_STATEMENT = m.SimpleStatementLine(
    [
        m.Expr(_CALL)
        | m.AugAssign()
        | m.Del()
        | m.Raise(exc=m.DoesNotMatch(None))
        | m.Assign([m.AssignTarget(m.Attribute() | m.Subscript())])
    ]
)
_TWO_CALLS = [m.SimpleStatementLine([m.Expr(_CALL)])] * 2


def leave_out(line: cst.SimpleStatementLine) -> Iterable[cst.CSTNode]:
    """Do nothing in place of a statement."""
    if m.matches(line, _STATEMENT):
        yield line.with_changes(body=[cst.Pass()])


def change_places(block: cst.IndentedBlock) -> Iterable[cst.CSTNode]:
    """Call the second of two before the first."""
    body = block.body
    for at in range(len(body) - 1):
        if all(map(m.matches, body[at : at + 2], _TWO_CALLS)):
            yield block.with_changes(body=[*body[:at], body[at + 1], body[at], *body[at + 2 :]])


def force(branch: cst.If | cst.CompIf | cst.While) -> Iterable[cst.CSTNode]:
    """Let a condition never hold, or always; a loop that never ends would only take time."""
    never, always = mutators.operator_if_exp(branch)  # type: ignore[arg-type]  # all it needs is a test
    yield never
    if not isinstance(branch, cst.While):
        yield always


def take_default(call: cst.Call) -> Iterable[cst.CSTNode]:
    """Leave out a keyword argument."""
    for at, argument in enumerate(call.args):
        if argument.keyword is not None:
            yield call.with_changes(args=[*call.args[:at], *call.args[at + 1 :]])


def take_sibling(call: cst.Call) -> Iterable[cst.CSTNode]:
    """Call another function of the same kind."""
    match call.func:
        case cst.Name(value=name) if name in _FUNCTIONS:
            yield call.with_deep_changes(call.func, value=_FUNCTIONS[name])
        case cst.Attribute(attr=cst.Name(value=name) as attribute) if name in _ATTRIBUTES:
            yield call.with_deep_changes(attribute, value=_ATTRIBUTES[name])


OPERATORS: tuple[tuple[type[cst.CSTNode] | tuple[type[cst.CSTNode], ...], Operator], ...] = (
    (cst.BaseNumber, mutators.operator_number),
    (cst.Name, mutators.operator_name),
    (cst.UnaryOperation, mutators.operator_remove_unary_ops),
    (cst.CSTNode, mutators.operator_keywords),
    (cst.CSTNode, mutators.operator_swap_op),
    (cst.Call, mutators.operator_symmetric_string_methods_swap),
    (cst.Call, mutators.operator_unsymmetrical_string_methods_swap),
    (cst.Match, mutators.operator_match),
    (cst.IfExp, mutators.operator_if_exp),
    ((cst.If, cst.CompIf, cst.While), force),
    (cst.SimpleStatementLine, leave_out),
    (cst.IndentedBlock, change_places),
    (cst.Call, take_default),
    (cst.Call, take_sibling),
)
