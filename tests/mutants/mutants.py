"""All mutants of a module, by names that outlive a move, and a sample of them that stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import unified_diff
from pathlib import Path

import libcst as cst
import libcst.matchers as m
from libcst.metadata import MetadataWrapper, PositionProvider

from tests.mutants.operators import OPERATORS

# What no test need notice: types, imports, invariants (asserts), the bounds and texts of settings, what an error says.
_UNTOUCHED = (
    m.Annotation()
    | m.Decorator()
    | m.Import()
    | m.ImportFrom()
    | m.Assert()
    | m.Call(func=m.Name("Field") | m.Name("ConfigDict"))
    | m.If(test=m.Name("TYPE_CHECKING") | m.Comparison(left=m.Name("__name__")))
)


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        module: The module's file, relative to the root.
        line: The line that the change begins in.
        name: 8 hexadecimal digits of what changes into what, in which function; neither file nor line enter it.
    """

    module: str
    line: int
    name: str
    _tree: cst.Module = field(repr=False)
    _node: cst.CSTNode = field(repr=False)
    _change: cst.CSTNode = field(repr=False)

    def code(self) -> str:
        """Return the module's whole text with the change."""
        changed = self._tree.deep_replace(self._node, self._change)
        assert isinstance(changed, cst.Module)
        return changed.code

    def diff(self) -> str:
        """Return the change as a unified diff with one line of context."""
        before, after = (text.splitlines() for text in (self._tree.code, self.code()))
        return "\n".join([*unified_diff(before, after, self.module, self.module, lineterm="", n=1)][2:])


def mutants(root: Path, module: str) -> list[Mutant]:
    """Return every mutant of a module, by place."""
    wrapper = MetadataWrapper(cst.parse_module((root / module).read_text("utf-8")), unsafe_skip_copy=True)
    finder = _Finder(module, wrapper.module)
    wrapper.visit(finder)
    return sorted(finder.mutants, key=lambda mutant: mutant.line)


def sample(population: Sequence[Mutant], most: int | None) -> list[Mutant]:
    """Draw mutants by their names, so that an edit changes the draw only where it changes mutants; None draws all."""
    drawn = sorted(population, key=lambda mutant: hashlib.sha256(mutant.name.encode()).digest())[:most]
    return sorted(drawn, key=lambda mutant: mutant.line)


class _Finder(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, module: str, tree: cst.Module) -> None:
        super().__init__()
        self.mutants: list[Mutant] = []
        self._module = module
        self._tree = tree
        self._lines = tree.code.splitlines()
        self._scope: list[str] = []
        self._names: dict[str, int] = {}

    def on_visit(self, node: cst.CSTNode) -> bool:
        if m.matches(node, _UNTOUCHED):
            return False
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._scope.append(node.name.value)
        for kind, operator in OPERATORS:
            if isinstance(node, kind):
                for change in operator(node):
                    self._add(node, change)
        return not isinstance(node, cst.Raise)

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef) and not m.matches(original_node, _UNTOUCHED):
            self._scope.pop()

    def _add(self, node: cst.CSTNode, change: cst.CSTNode) -> None:
        line = self.get_metadata(PositionProvider, node).start.line
        what = "\n".join([*self._scope, self._lines[line - 1].strip(), *self._lines_that_differ(node, change)])
        self._names[what] = again = self._names.get(what, -1) + 1
        name = hashlib.sha256(f"{what}\n{again}".encode()).hexdigest()[:8]
        self.mutants.append(Mutant(self._module, line, name, self._tree, node, change))

    def _lines_that_differ(self, node: cst.CSTNode, change: cst.CSTNode) -> Iterator[str]:
        before, after = (self._tree.code_for_node(one).splitlines() for one in (node, change))
        return (line for line in unified_diff(before, after, n=0) if not line.startswith(("---", "+++", "@@")))
