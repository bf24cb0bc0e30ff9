"""New forwards of a block for the ways in which it may be called, and the choice among them."""

from __future__ import annotations

from torch import nn

from fastseg.optimize.blocks.program import Program


class Variants:
    """Programs of a block for the optional arguments that it is given, and for its mode.

    An optional argument is one whose default is None. It is given if it is not None.

    Args:
        names: the names of the arguments of the block's own forward, in their order.
        by_place: how many of them may be given by place.
        required: how many of them have no default.
        programs: pairs of the names of the optional arguments that are given, in their order, and
            the program that takes the required ones and these.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        by_place: int,
        required: int,
        programs: list[tuple[tuple[str, ...], Program]],
    ):
        self.names, self.by_place, self.required = names, by_place, required
        self.programs = programs

    def of(self, block: nn.Module, args: tuple, kwargs: dict) -> tuple[Program | None, tuple]:
        """The program that does with these arguments what the block does, and what it takes."""
        names, required = self.names, self.required
        if len(args) > self.by_place:
            return None, ()
        values = dict(zip(names, args))  # noqa: B905 - the last names have no value
        for name, value in kwargs.items():
            if name in values or name not in names:
                return None, ()
            values[name] = value
        if any(name not in values for name in names[:required]):
            return None, ()
        given = tuple([n for n in names[required:] if values.get(n) is not None])
        for key, program in self.programs:
            if key == given:
                arguments = tuple([values[n] for n in (*names[:required], *given)])
                if program.fits(block, arguments):
                    return program, arguments
        return None, ()

    def compile(self) -> None:
        """Compiles the guards of a block that was read from a file."""
        for _, program in self.programs:
            program.guard.compile()

    def why_not(self, block: nn.Module) -> str | None:
        """Why none of the programs fits any arguments, or None."""
        reasons = [program.why_not(block) for _, program in self.programs]
        return None if None in reasons else reasons[0]
