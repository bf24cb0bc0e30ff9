"""ASPP as torchvision, segmentation_models_pytorch, mmsegmentation and their like write it.

Found by what a forward does, not by its name: convolutions of one input at several rates, and
perhaps its average, are concatenated and projected. Nothing is concatenated after the rewriting.
"""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import fx, nn

from fastseg.optimize.aspp_call import Branch, Form, aspp_call
from fastseg.optimize.chains import Chain, bn_target, follow, may_write, module_of, only_user
from fastseg.optimize.eligible import activation_of, has_hooks, is_batch_norm, why_not_conv
from fastseg.optimize.trace import NotTraceable, has_own_forward, trace

DROPOUTS = (nn.Dropout, nn.Dropout2d)
CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


class ASPPNodes(NamedTuple):
    """An ASPP in a graph."""

    x: fx.Node
    last: fx.Node  # whose value the call replaces
    nodes: set[fx.Node]  # all that goes
    chains: list[Chain]
    branches: list[Branch]  # with names for modules, like pool and project
    pool: Branch | None
    project: Branch
    form: Form


def aspp_graph(block: nn.Module) -> fx.Graph:
    """In which find_aspp looks: children are calls, but for lists of modules.

    Raises:
        NotTraceable: with the reason.
    """
    return trace(block, lambda m: isinstance(m, nn.ModuleList) and _inlined(m))


def find_aspp(root: nn.Module, graph: fx.Graph) -> list[ASPPNodes]:
    """The ASPPs of a block."""
    found = (_at(root, graph, node) for node in graph.nodes if node.target in CONCATENATIONS)
    return [aspp for aspp in found if aspp is not None]


def fuse_aspp(graph: fx.Graph, found: list[ASPPNodes]) -> None:
    """Each becomes one call, in place."""
    for aspp in found:
        with graph.inserting_before(aspp.last):
            branches = tuple(_getting(graph, branch) for branch in aspp.branches)
            pool = None if aspp.pool is None else _getting(graph, aspp.pool)
            arguments = (aspp.x, branches, pool, _getting(graph, aspp.project), aspp.form)
            call = graph.call_function(aspp_call, arguments)
        aspp.last.replace_all_uses_with(call)
        for node in reversed(graph.nodes):
            if node in aspp.nodes:
                graph.erase_node(node)


def _getting(graph: fx.Graph, branch: Branch) -> Branch:
    """Nodes that get the modules for their names."""
    *modules, activation, dropouts = branch
    modules = [None if name is None else graph.get_attr(name) for name in modules]
    return Branch(*modules, activation, tuple(map(graph.get_attr, dropouts)))


class _Part(NamedTuple):
    """What a module does: an average if it has one, convolutions, one after the other."""

    chains: list[Chain]
    averages: bool
    interpolation: str
    dropouts: list[str]
    branch: Branch
    activation: str


def _at(root, graph: fx.Graph, cat: fx.Node) -> ASPPNodes | None:
    """The ASPP whose concatenation it is."""
    dim = cat.args[1] if len(cat.args) > 1 else cat.kwargs.get("dim")
    inputs = cat.args[0] if cat.args else None
    if dim != 1 or not isinstance(inputs, list | tuple) or len(inputs) < 3:
        return None
    interpolated = {node: mode for node in inputs if (mode := _interpolation(node))}
    calls = [node.args[0] if node in interpolated else node for node in inputs]
    x = calls[0].args[0] if calls[0].args else None
    if any(c.op != "call_module" or c.args != (x,) or c.kwargs for c in calls):
        return None
    parts = [_part(root, call.target) for call in calls]
    last = _projection(root, cat)
    if last is None or not all(parts):
        return None
    project, project_nodes = last
    pools = [i for i, part in enumerate(parts) if part.averages]
    form = Form(project.activation, pools == [0])
    if pools:
        i = pools[0]
        if len(pools) > 1 or i not in (0, len(parts) - 1) or not interpolated.keys() <= {inputs[i]}:
            return None
        form = form._replace(interpolation=interpolated.get(inputs[i], ""))
        if bool(form.interpolation) == bool(parts[i].interpolation):
            return None
    elif interpolated:
        return None
    maps = [part for part in parts if not part.averages]
    if (
        not any(chain.conv.dilation[0] > 1 for part in maps for chain in part.chains)
        or any(part.activation != project.activation for part in parts)
        or any(part.dropouts for part in parts)
    ):
        return None
    nodes = {*calls, *interpolated, cat, *project_nodes}
    nodes |= _sizes(graph, nodes, x)
    end = project_nodes[-1]
    if any(user not in nodes for node in nodes - {end} for user in node.users):
        return None
    between = _between(min(nodes), end)
    if any(n not in nodes and x in n.all_input_nodes and may_write(root, n) for n in between):
        return None
    chains = [chain for part in (*parts, project) for chain in part.chains]
    pool = parts[pools[0]].branch if pools else None
    return ASPPNodes(
        x, end, nodes, chains, [part.branch for part in maps], pool, project.branch, form
    )


def _between(first: fx.Node, last: fx.Node):
    while first is not last:
        yield first
        first = first.next


def _interpolation(node: fx.Node) -> str:
    """The mode of an interpolation that makes one pixel a map, or ""."""
    if not isinstance(node, fx.Node) or node.target is not F.interpolate:
        return ""
    mode = node.args[3] if len(node.args) > 3 else node.kwargs.get("mode", "nearest")
    return mode if mode in ("nearest", "bilinear") and node.args else ""


def _is_size(node: fx.Node) -> bool:
    """Reads a shape, which the concatenation demands to be the map's."""
    if node.op == "call_method":
        return node.target == "size"
    shape = node.target is getattr and node.args[1] == "shape"
    return node.op == "call_function" and (shape or node.target is operator.getitem)


def _sizes(graph: fx.Graph, nodes: set[fx.Node], x: fx.Node) -> set[fx.Node]:
    """What only these nodes want to know of shapes; x itself may be an item of a list."""
    sizes: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node is not x and _is_size(node) and node.users and node.users.keys() <= nodes | sizes:
            sizes.add(node)
    return sizes


def _projection(root, cat: fx.Node) -> tuple[_Part, list[fx.Node]] | None:
    """A module that is called with the concatenation, or a chain in the block itself."""
    node = only_user(cat)
    module = None if node is None else module_of(root, node)
    if module is None or node.args != (cat,) or node.kwargs:
        return None
    if not isinstance(module, nn.Conv2d):
        part = _part(root, node.target)
        if part is None or part.averages or part.branch.depthwise is not None:
            return None
        return part, [node]
    chain = None if why_not_conv(module) else follow(root, node, module, set())
    if chain is None or not _suits(chain) or chain.conv.groups > 1:
        return None
    branch = Branch(None, node.target, _bn_name(root, chain))
    return _Part([chain], False, "", [], branch, chain.ends_with), chain.nodes


def _bn_name(root, chain: Chain) -> str | None:
    return None if chain.bn is None else bn_target(root, chain)


def _suits(chain: Chain) -> bool:
    """A square kernel that keeps the map's size, no residual."""
    conv = chain.conv
    same = tuple(d * (k // 2) for d, k in zip(conv.dilation, conv.kernel_size, strict=True))
    keeps = conv.stride == (1, 1) and conv.padding in ("same", same)
    return keeps and conv.dilation[0] == conv.dilation[1] and chain.residual is None


def _inlined(module: nn.Module) -> bool:
    """What may be taken apart: no op, and called for nothing else than its forward."""
    op = isinstance(module, nn.Conv2d) or is_batch_norm(module) or activation_of(module) is not None
    return has_own_forward(module) and not op and not has_hooks(module)


def _part(root: nn.Module, name: str) -> _Part | None:
    """A module, if it is a branch, an image pooling or a projection."""
    module = root.get_submodule(name)
    if not _inlined(module):
        return None
    try:
        graph = trace(module, _inlined)
    except NotTraceable:
        return None
    chains, averages, interpolation, dropouts = [], False, "", []
    node, passed = next(iter(graph.nodes)), set()
    while node.op != "output":
        passed.add(node)
        readers = [user for user in node.users if not _is_size(user)]
        if len(readers) != 1:
            return None
        (reader,) = readers
        inner = module_of(module, reader)
        follows = reader.args[:1] == (node,)
        if reader.op == "output" or type(inner) is nn.Identity:
            follows = True
        elif follows and isinstance(inner, nn.Conv2d) and not (dropouts or interpolation):
            if why_not_conv(inner):
                return None
            chains.append(follow(module, reader, inner, set()))
            passed.update(chains[-1].nodes)
            reader = chains[-1].nodes[-1]
        elif follows and _averages(inner) and not chains:
            averages = True
        elif follows and type(inner) in DROPOUTS and not has_hooks(inner):
            dropouts.append(f"{name}.{reader.target}")
        elif follows and averages and chains and _interpolation(reader) and not interpolation:
            interpolation = _interpolation(reader)
        else:
            return None
        node = reader
    others = [n for n in graph.nodes if n not in passed and n is not node and not _is_size(n)]
    if others or not chains or not all(map(_suits, chains)):
        return None
    branch = _branch_of(module, name, chains, dropouts)
    if branch is None or (averages and chains[0].conv.kernel_size != (1, 1)):
        return None
    return _Part(chains, averages, interpolation, dropouts, branch, chains[-1].ends_with)


def _averages(module: nn.Module | None) -> bool:
    one = isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))
    return one and not has_hooks(module)


def _branch_of(module, name: str, chains: list[Chain], dropouts: list[str]) -> Branch | None:
    """A convolution of one group, before it perhaps a depthwise one."""
    names = []
    for chain in chains[::-1]:
        bn = _bn_name(module, chain)
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
