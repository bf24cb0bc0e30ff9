"""ASPP as torchvision, segmentation_models_pytorch, mmsegmentation and their like write it.

It is found by what a forward does, not by a name: convolutions of one input at several rates, and
perhaps its average, are concatenated and projected. Nothing is concatenated after the rewriting.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import fx, nn

from fastseg.optimize.blocks.aspp_call import Branch, Form, aspp_call
from fastseg.optimize.classify.steps import Kind, Step
from fastseg.optimize.match.chains import Chain, follow, only_user
from fastseg.optimize.trace.stand_ins import NotTraceable
from fastseg.optimize.trace.trace import Trace, Traces, has_own_forward


class ASPPNodes(NamedTuple):
    """An ASPP in a graph.

    Attributes:
        first: the node that reads its input and nothing else.
        last: the node whose value the call replaces.
        nodes: all nodes that the call replaces.
        chains: the convolutions of all its parts.
        branches: the branches, which have names for modules as pool and project do.
        pool: the image pooling, or None.
        project: the projection.
        form: how the block writes it.
        traces: the traces of its parts.
    """

    first: fx.Node
    last: fx.Node
    nodes: set[fx.Node]
    chains: list[Chain]
    branches: list[Branch]
    pool: Branch | None
    project: Branch
    form: Form
    traces: list[Trace]


def lists_of_modules(step: Step) -> bool:
    """Whether a child is a list of modules, whose forward is part of the graph for find_aspp."""
    return isinstance(step.module, nn.ModuleList) and _inlined(step)


def _inlined(step: Step) -> bool:
    """Whether a module may be taken apart: no op, and called for nothing else than its forward."""
    return has_own_forward(step.module) and not step.is_op and not step.is_hooked


def find_aspp(trace: Trace, traces: Traces) -> list[ASPPNodes]:
    """The ASPPs of a block whose trace has its lists of modules inlined."""
    found = (
        _Search(trace, traces).at(node)
        for node, step in trace.steps.items()
        if step.kind is Kind.CONCATENATION
    )
    return [aspp for aspp in found if aspp is not None]


def fuse_aspp(graph: fx.Graph, found: list[ASPPNodes]) -> None:
    """Makes one call of each ASPP, in place."""
    for aspp in found:
        with graph.inserting_before(aspp.last):
            branches = tuple(_getting(graph, branch) for branch in aspp.branches)
            pool = None if aspp.pool is None else _getting(graph, aspp.pool)
            project = _getting(graph, aspp.project)
            x = aspp.first.args[0]  # it may be the end of an ASPP that was fused before
            arguments = (x, branches, pool, project, aspp.form)
            call = graph.call_function(aspp_call, arguments)
        aspp.last.replace_all_uses_with(call)
        for node in reversed(graph.nodes):
            if node in aspp.nodes:
                graph.erase_node(node)


def _getting(graph: fx.Graph, branch: Branch) -> Branch:
    """The branch with nodes that get its modules instead of their names."""
    *modules, activation, dropouts = branch
    modules = [None if name is None else graph.get_attr(name) for name in modules]
    return Branch(*modules, activation, tuple(map(graph.get_attr, dropouts)))


class _Part(NamedTuple):
    """What a module does: perhaps an average, then convolutions, one after the other.

    Attributes:
        chains: its convolutions and what is one op with them.
        averages: whether it averages its input first.
        interpolation: the mode in which it makes the average a map again, or "".
        dropouts: the names of its dropouts in the root.
        branch: its part of the call.
        activation: the op's name for the activation of its last convolution, or "".
        trace: the trace of it.
    """

    chains: list[Chain]
    averages: bool
    interpolation: str
    dropouts: list[str]
    branch: Branch
    activation: str
    trace: Trace


class _Search:
    """A search for ASPPs in one graph."""

    def __init__(self, trace: Trace, traces: Traces):
        self.trace, self.traces = trace, traces
        self.root, self.steps = trace.root, trace.steps

    def at(self, cat: fx.Node) -> ASPPNodes | None:
        """The ASPP whose maps a node concatenates, or None."""
        inputs = cat.args[0] if cat.args else None
        if not isinstance(inputs, (list, tuple)) or len(inputs) < 3:
            return None
        interpolated = {node: mode for node in inputs if (mode := _interpolation(self.trace, node))}
        calls = [node.args[0] if node in interpolated else node for node in inputs]
        x = calls[0].args[0] if calls[0].args else None
        if any(c.op != "call_module" or c.args != (x,) or c.kwargs for c in calls):
            return None
        parts = [self._part(call.target) for call in calls]
        last = self._projection(cat)
        if last is None or not all(parts):
            return None
        project, project_nodes = last
        form = _form(parts, project, [interpolated.get(node, "") for node in inputs])
        if form is None:
            return None
        nodes = {*calls, *interpolated, cat, *project_nodes}
        nodes |= self._sizes(nodes, x)
        end = project_nodes[-1]
        if any(user not in nodes for node in nodes - {end} for user in node.users):
            return None
        if self.trace.memory.changed_between(min(nodes), end, {x}, nodes):
            return None
        everything = (*parts, project)
        chains = [chain for part in everything for chain in part.chains]
        pool = next((part.branch for part in parts if part.averages), None)
        branches = [part.branch for part in parts if not part.averages]
        traces = [part.trace for part in everything]
        return ASPPNodes(calls[0], end, nodes, chains, branches, pool, project.branch, form, traces)

    def _sizes(self, nodes: set[fx.Node], x: fx.Node) -> set[fx.Node]:
        """The sizes that only these nodes read; x itself may be an item of a list."""
        sizes: set[fx.Node] = set()
        for node in reversed(self.trace.graph.nodes):
            is_size = node is not x and self.steps[node].kind is Kind.SIZE
            if is_size and node.users and node.users.keys() <= nodes | sizes:
                sizes.add(node)
        return sizes

    def _projection(self, cat: fx.Node) -> tuple[_Part, list[fx.Node]] | None:
        """The projection: a module that takes the concatenation, or a chain in the block itself."""
        node = only_user(cat)
        if node is None or node.op != "call_module" or node.args != (cat,) or node.kwargs:
            return None
        if self.steps[node].kind is not Kind.CONV:
            part = self._part(node.target)
            if part is None or part.averages or part.branch.depthwise is not None:
                return None
            return part, [node]
        chain = None if self.steps[node].why_not else follow(self.trace, node, set())
        if chain is None or not _suits(chain) or chain.conv.groups > 1:
            return None
        branch = Branch(None, node.target, chain.bn_name)
        return _Part([chain], False, "", [], branch, chain.ends_with, self.trace), chain.nodes

    def _part(self, name: str) -> _Part | None:
        """What a module does, or None if it is no branch, image pooling or projection."""
        module = self.root.get_submodule(name)
        if not _inlined(self.traces.steps[module]):
            return None
        try:
            return _part_of(self.traces.of(module, _inlined), name)
        except NotTraceable:
            return None


def _form(parts: list[_Part], project: _Part, interpolations: list[str]) -> Form | None:
    """How the parts are put together, or None if that is no ASPP."""
    pools = [i for i, part in enumerate(parts) if part.averages]
    form = Form(project.activation, pools == [0])
    if len(pools) > 1 or any(mode and i not in pools for i, mode in enumerate(interpolations)):
        return None
    for i in pools:
        form = form._replace(interpolation=interpolations[i])
        at_an_end = i in (0, len(parts) - 1)
        if not at_an_end or bool(form.interpolation) == bool(parts[i].interpolation):
            return None
    maps = [part for part in parts if not part.averages]
    atrous = any(chain.conv.dilation[0] > 1 for part in maps for chain in part.chains)
    alike = all(part.activation == project.activation for part in parts)
    return form if atrous and alike and not any(part.dropouts for part in parts) else None


def _interpolation(trace: Trace, node) -> str:
    """The mode of a node that makes one pixel a map by interpolation, or "" of any other."""
    step = trace.steps[node] if isinstance(node, fx.Node) else None
    if step is None or step.kind is not Kind.INTERPOLATION or not node.args:
        return ""
    return step.name if step.name in ("nearest", "bilinear") else ""


def _suits(chain: Chain) -> bool:
    """Whether a chain keeps the map's size, is as wide as high, and adds no residual."""
    conv = chain.conv
    same = tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    keeps = conv.stride == (1, 1) and conv.padding in ("same", same)
    return keeps and conv.dilation[0] == conv.dilation[1] and chain.addition is None


def _part_of(trace: Trace, name: str) -> _Part | None:
    """What a module does, followed from its input to its output, one reader after the other."""
    steps = trace.steps
    chains, averages, interpolation, dropouts = [], False, "", []
    node, passed = next(iter(trace.graph.nodes)), set()
    while node.op != "output":
        passed.add(node)
        readers = [user for user in node.users if steps[user].kind is not Kind.SIZE]
        if len(readers) != 1:
            return None
        (reader,) = readers
        kind = steps[reader].kind
        if reader.op == "output" or kind is Kind.IDENTITY:
            pass
        elif reader.args[:1] != (node,):
            return None
        elif kind is Kind.CONV and not (dropouts or interpolation or steps[reader].why_not):
            chains.append(follow(trace, reader, set()))
            passed.update(chains[-1].nodes)
            reader = chains[-1].nodes[-1]
        elif kind is Kind.AVERAGE and not chains:
            averages = True
        elif kind is Kind.DROPOUT:
            dropouts.append(f"{name}.{reader.target}")
        elif averages and chains and _interpolation(trace, reader) and not interpolation:
            interpolation = steps[reader].name
        else:
            return None
        node = reader
    others = [n for n in steps if n not in passed and n is not node]
    if any(steps[n].kind is not Kind.SIZE for n in others) or not chains:
        return None
    branch = _branch_of(name, chains, dropouts) if all(map(_suits, chains)) else None
    if branch is None or (averages and chains[0].conv.kernel_size != (1, 1)):
        return None
    ends_with = chains[-1].ends_with
    return _Part(chains, averages, interpolation, dropouts, branch, ends_with, trace)


def _branch_of(name: str, chains: list[Chain], dropouts: list[str]) -> Branch | None:
    """The branch of a convolution of one group and perhaps a depthwise one before it, or None."""
    names = []
    for chain in chains[::-1]:
        bn = chain.bn_name
        names += [f"{name}.{chain.nodes[0].target}", None if bn is None else f"{name}.{bn}"]
    if len(chains) > 2 or chains[-1].conv.groups > 1:
        return None
    if len(chains) == 1:
        return Branch(name, *names, dropouts=tuple(dropouts))
    conv = chains[0].conv
    pointwise = chains[1].conv.kernel_size == (1, 1)
    if not pointwise or not conv.groups == conv.in_channels == conv.out_channels:
        return None
    return Branch(name, *names, chains[0].ends_with, tuple(dropouts))
