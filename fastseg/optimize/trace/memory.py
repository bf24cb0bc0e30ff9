"""Which values of a graph may share memory."""

from __future__ import annotations

from torch import fx, nn

from fastseg.optimize.classify.effects import may_be_view, may_write, module_of, returns_tensor


class Memory:
    """Which values of a graph may share memory, and what may change them.

    A value is in memory of its own, or in that of what it may be a view of. What comes from
    outside, the arguments and what modules keep, may share memory among itself.

    Attributes:
        relied_on: modules of which it was said that they write to nothing.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph):
        self.root = root
        self.relied_on: set[nn.Module] = set()
        self._of: dict[fx.Node, frozenset] = {}
        for node in graph.nodes:
            memory = {node}
            if node.op in ("placeholder", "get_attr") or self._is_unknown(node):
                memory.add(_OUTSIDE)
            if node.op != "output" and may_be_view(root, node):
                memory.update(*(self._of[value] for value in node.all_input_nodes))
            self._of[node] = frozenset(memory)
        self._writers = {n for n in graph.nodes if may_write(root, n)}
        self._reads_by_name = any(n.op == "get_attr" for n in graph.nodes)

    def _is_unknown(self, node: fx.Node) -> bool:
        module = module_of(self.root, node)
        return module is not None and not returns_tensor(self.root, node)

    def writes(self, node: fx.Node) -> bool:
        """Whether a node may write to its inputs."""
        return node in self._writers

    def changed_between(self, first: fx.Node, last: fx.Node, reads, ours) -> bool:
        """Whether a node between two others, not ours, may write to what is read.

        Or to what modules keep, or calls one of the modules that ours call.

        Args:
            first: a node.
            last: a later node.
            reads: nodes whose values are read, beside those of modules.
            ours: nodes that are looked over.
        """
        memory = frozenset().union(*(self._of[node] for node in reads))
        if self._reads_by_name:  # what a name gets may be a weight that ours read
            memory |= {_OUTSIDE}
        called = {module_of(self.root, node) for node in ours} - {None}
        node = first.next
        while node is not last:
            if node not in ours:
                if node in self._writers:
                    if any(memory & self._of[value] for value in node.all_input_nodes):
                        return True
                elif node.op == "call_module":
                    self.relied_on.add(module_of(self.root, node))
                if node.op == "call_module" and called & {*module_of(self.root, node).modules()}:
                    return True
            node = node.next
        return False


_OUTSIDE = "what a graph is given, and what modules keep"
