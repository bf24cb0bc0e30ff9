"""A block's new forward before it is put in, and the ways in which the block may be called."""

from __future__ import annotations

import inspect
from typing import NamedTuple

from torch import fx, nn

from fastseg.optimize.blocks.conditions import base_of, conditions_of
from fastseg.optimize.blocks.guard import Guard
from fastseg.optimize.blocks.program import Program
from fastseg.optimize.blocks.variants import Variants
from fastseg.optimize.trace.trace import ANY_FORM, Form, Trace

MOST_OPTIONS = 4
"""Number of optional arguments, each of which may be given alone, that are looked at."""


class Rewriting(NamedTuple):
    """A block's new forward.

    Attributes:
        graph: the graph of the new forward.
        traces: the traces that it was made from, that of the block first.
        replaced: modules that the block called and the new forward does not.
        trains: whether it has something for training too: an ASPP, functions of pooling or what
            follows logits.
    """

    graph: fx.Graph
    traces: list[Trace]
    replaced: set[nn.Module]
    trains: bool

    @property
    def form(self) -> Form:
        """The way to call the block that it is for."""
        return self.traces[0].form

    def program(self, block: nn.Module) -> Program:
        """The code of the new forward, guarded by what the block is now."""
        witnesses = [witness for trace in self.traces for witness in trace.witnesses]
        asks = frozenset().union(*(witness.asks for witness in witnesses))
        if any(trace.asks_for_arguments for trace in self.traces):
            asks |= {"arguments"}
        guard = Guard(block, conditions_of(block, witnesses, self.replaced))
        return Program.of(self.graph, asks, guard, self.trains, self.form.training)


def put_in(block: nn.Module, rewritings: list[Rewriting]) -> None:
    """Gives a block, which is a Fused, its new forwards."""
    variants = []
    for rewriting in rewritings:
        program = rewriting.program(block)
        if rewriting.form == ANY_FORM:
            block._program = program
        variants.append((rewriting.form.given, program))
    if [given for given, _ in variants] != [()] or block._program is None:
        block._variants = Variants(*_arguments(block), variants)


def optional_arguments(block: nn.Module) -> list[str]:
    """The names of the arguments of a block's forward that are None unless they are given."""
    parameters = inspect.signature(base_of(block).forward).parameters.values()
    return [p.name for p in parameters if p.default is None and p.kind in _NAMED]


def forms_of(block: nn.Module) -> list[Form]:
    """The ways to call a block that give it optional arguments: one alone, or all of them."""
    names = optional_arguments(block)[:MOST_OPTIONS]
    forms = [Form((name,)) for name in names]
    return [*forms, Form(tuple(names))] if len(names) > 1 else forms


_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def _arguments(block: nn.Module) -> tuple[tuple[str, ...], int, int]:
    """The names of the arguments that a block's forward takes.

    Returns:
        The names, those by keyword alone at the end; how many are taken by place; how many needed.
    """
    parameters = [*inspect.signature(base_of(block).forward).parameters.values()][1:]
    named = [p for p in parameters if p.kind in _NAMED]
    by_place = sum(p.kind is _NAMED[0] for p in named)
    required = sum(p.default is inspect.Parameter.empty for p in named)
    return tuple(p.name for p in named), by_place, required
