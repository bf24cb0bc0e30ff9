"""Which values of a graph may share memory, and what may change them."""

from __future__ import annotations

from torch import fx, nn

from fastseg.optimize.classify.steps import Step


class Memory:
    """Which values of a graph may share memory, and what may change them.

    A value is in memory of its own, or in that of what it may be a view of. What comes from
    outside, the arguments and what modules keep, may share memory among itself.

    Args:
        graph: the graph.
        steps: the step of each node.

    Attributes:
        relied_on: modules of which it was said that they write to nothing.
    """

    def __init__(self, graph: fx.Graph, steps: dict[fx.Node, Step]):
        self._steps = steps
        self.relied_on: set[nn.Module] = set()
        self._of: dict[fx.Node, frozenset] = {}
        for node in graph.nodes:
            module, effects = steps[node].module, steps[node].effects
            memory = {node}
            unknown = module is not None and not effects.returns_tensor
            if unknown or node.op in ("placeholder", "get_attr"):
                memory.add(_OUTSIDE)
            if node.op != "output" and effects.may_be_view:
                memory.update(*(self._of[value] for value in node.all_input_nodes))
            self._of[node] = frozenset(memory)
        self._reads_by_name = any(n.op == "get_attr" for n in graph.nodes)

    def writes(self, node: fx.Node) -> bool:
        """Whether a node may write to its inputs."""
        return self._steps[node].effects.may_write

    def may_change_after(self, last: fx.Node, value: fx.Node, ours) -> bool:
        """Whether a value may be written to after a node, in the graph or by whoever gets it.

        Args:
            last: the node.
            value: the value.
            ours: later nodes that are looked over.
        """
        memory = self._of[value]
        if _OUTSIDE in memory:
            return True
        node = last.next
        while node.op != "root":  # which is next to the output
            if node not in ours and any(memory & self._of[v] for v in node.all_input_nodes):
                return True
            node = node.next
        return False

    def changed_between(self, first: fx.Node, last: fx.Node, reads, ours) -> bool:
        """Whether a node between two others, not ours, may write to what is read.

        It is also true if such a node may write to what modules keep, or calls one of the modules
        that our nodes call.

        Args:
            first: a node.
            last: a later node.
            reads: nodes whose values are read, beside those of modules.
            ours: nodes that are looked over.
        """
        memory = frozenset().union(*(self._of[node] for node in reads))
        if self._reads_by_name:  # what a name gets may be a weight that our nodes read
            memory |= {_OUTSIDE}
        called = {self._steps[node].module for node in ours} - {None}
        node = first.next
        while node is not last:
            if node not in ours:
                module = self._steps[node].module
                if self.writes(node):
                    if any(memory & self._of[value] for value in node.all_input_nodes):
                        return True
                elif module is not None:
                    self.relied_on.add(module)
                if module is not None and called & {*module.modules()}:
                    return True
            node = node.next
        return False


_OUTSIDE = "what a graph is given, and what modules keep"
