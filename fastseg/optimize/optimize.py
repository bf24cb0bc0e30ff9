"""fastseg.optimize_ and fastseg.restore_."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from fastseg.optimize.aspp import ASPPNodes, aspp_graph, find_aspp, fuse_aspp
from fastseg.optimize.chains import (
    NO_CONVOLUTION,
    find_chains,
    find_pooled,
    fuse,
    fuse_pooled,
    module_of,
    why_alone,
)
from fastseg.optimize.eligible import is_batch_norm, why_not_batch_norm, why_not_conv
from fastseg.optimize.functional_pooling import NAMES, find_functional, take_codes
from fastseg.optimize.modules import Atrous, Codes, Folded, Folding, Frozen, Fused, may_own
from fastseg.optimize.pooling import paired_pools
from fastseg.optimize.report import Entry, Report
from fastseg.optimize.swap import Swapped, restore, swap
from fastseg.optimize.trace import (
    NotTraceable,
    Program,
    has_own_forward,
    is_sequential,
    trace,
)

MODES = ("train", "infer")


def optimize_(
    model: nn.Module,
    *,
    mode: str = "train",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    dry_run: bool = False,
) -> Report:
    """Lets fastseg's ops compute what they compute faster in a model, in place.

    Any nn.Module; its own code stays as it is. What is found, in blocks of torchvision,
    segmentation_models_pytorch, timm, mmsegmentation and one's own, as neighbours in a Sequential
    or in the forward of a block (by torch.fx; a forward that it cannot follow is left):

    - Conv2d, its BatchNorm2d, an added residual and ReLU, ReLU6, LeakyReLU(0.01), SiLU or Hardswish
      after it: one :func:`fastseg.atrous_conv2d` (odd kernels, any rate, stride and groups);
    - ASPP with its projection, a block of its own or in the forward of a head: one
      :func:`fastseg.aspp`;
    - MaxPool2d(return_indices=True) whose indices go to a MaxUnpool2d and nowhere else: byte codes.
      The unpooled map must be as large as what was pooled was. The same of F.max_pool2d and
      F.max_unpool2d in one forward;
    - BatchNorm2d, ReLU and MaxPool2d: one :func:`fastseg.batch_norm_relu_max_pool2d`.

    Modules stay the same objects with the same parameters and state_dict keys; their classes become
    subclasses. So a model can be copied, pickled, compiled, exported, packaged by AOTInductor (the
    process that loads it imports fastseg), wrapped (DistributedDataParallel; fully_shard, which
    may also come first) and checkpointed as before, and an optimizer goes on. Forward hooks that
    are put later on a module within what was fused are not called.

    Mode "train": gradients and batch statistics as before. Convolutions for which fastseg has the
    faster kernel run by it, forward and backward; the rest is fused while batch norm is in
    evaluation and no gradient is needed.

    Mode "infer", for a model in evaluation: batch norms are folded once, into constants.
    load_state_dict() folds them again; other changes of their tensors need a new optimize_.
    train() raises. On the CPU convolutions compute in channels_last, whatever the input's layout,
    and so are outputs; code of the model that calls view() across channels does not run then.

    Args:
        model: in place.
        mode: "train" or "infer".
        filter_fn: called with a Conv2d, a pooling or a block whose forward has an ASPP or functions
            of pooling, and its name in the model; False leaves it.
        dry_run: reports only.

    Returns:
        The report, whose str() is a table.

    Raises:
        TypeError: model is no module.
        ValueError: an unknown mode, "infer" for a model in training, or one that is optimised
            already.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize_: model must be an nn.Module, got {type(model).__name__}")
    if mode not in MODES:
        raise ValueError(f"optimize_: mode must be one of {MODES}, got {mode!r}")
    if any(isinstance(m, Swapped) for m in model.modules()):
        raise ValueError("optimize_: the model is optimised; fastseg.restore_(model) undoes it")
    if mode == "infer" and any(m.training for m in model.modules() if is_batch_norm(m)):
        raise ValueError("optimize_: mode 'infer' folds batch norms: call model.eval() before")
    plan = _Plan(model, mode, filter_fn)
    report = plan.report(dry_run)
    if not dry_run:
        plan.apply()
    return report


def restore_(model: nn.Module) -> None:
    """Undoes :func:`optimize_`, in place: classes and keys as they were, weights as they are."""
    for module in model.modules():
        restore(module)


def _convolutions(block: nn.Module) -> list[nn.Module]:
    return [m for m in block.modules() if isinstance(m, nn.Conv2d)]


def _has_work(block: nn.Module) -> bool:
    return any(isinstance(m, nn.Conv2d) or is_batch_norm(m) for m in block.modules())


class _Plan:
    """What is to be done to a model.

    Attributes:
        programs: by block, its new forward.
        with_aspp: the blocks that are an ASPP or have one in their forward.
        in_chain: by convolution, what it is fused with.
        folded: the batch norms that are fused.
        codes: poolings and unpoolings.
        functions: by block, the functions of pooling that it calls and what becomes of them.
        untraceable: by block, why.
        alone: by batch norm that is called on its own, why.
    """

    def __init__(self, model: nn.Module, mode: str, filter_fn):
        self.model, self.mode = model, mode
        self.names = {m: name for name, m in model.named_modules()}
        of_fastseg = {
            inner
            for m in self.names
            if type(m).__module__.startswith("fastseg.nn.")
            for inner in m.modules()
        }
        self.modules = [m for m in self.names if m not in of_fastseg]
        self.wanted = lambda m: filter_fn is None or bool(filter_fn(m, self.names[m]))
        self.programs: dict[nn.Module, Program] = {}
        self.with_aspp: set[nn.Module] = set()
        self.in_chain: dict[nn.Module, str] = {}
        self.folded: set[nn.Module] = set()
        self.functions: dict[nn.Module, list[tuple[str, str | None]]] = {}
        self.untraceable: dict[nn.Module, str] = {}
        self.alone: dict[nn.Module, str] = {}
        known: set[tuple] = set()
        # Inner Sequentials first: what they fuse needs no other forward around them.
        inner_first = self.modules[::-1]
        for module in sorted(inner_first, key=lambda m: not is_sequential(m)):
            if has_own_forward(module) and _has_work(module):
                self._plan_block(module, known)
        self.codes, self.codes_left = paired_pools(model)
        unwanted = {m for m in self.codes if not self.wanted(m)}
        if unwanted:  # a pooling without its unpooling is none
            self.codes_left.update(dict.fromkeys(self.codes, "filter_fn"))
            self.codes = set()

    def _plan_block(self, block: nn.Module, known: set[tuple]) -> None:
        """Rewrites the block's forward if that fuses what Sequentials alone do not."""
        try:
            graph, aspps = self._graph(block)
        except NotTraceable as error:
            self.untraceable[block] = str(error)
            return
        if aspps:
            self.with_aspp.add(block)
            fuse_aspp(graph, aspps)
        chains = find_chains(block, graph, self.wanted)
        pooled = find_pooled(block, graph, chains)
        pooled = [p for p in pooled if self.wanted(block.get_submodule(p.pool.target))]
        functions = self._plan_functions(block, graph)
        self._explain(block, graph)
        if not (aspps or pooled or functions) and {c.key for c in chains} <= known:
            return
        for chain in (*chains, *(chain for aspp in aspps for chain in aspp.chains)):
            known.add(chain.key)
            self.in_chain[chain.conv] = str(chain)
            self.folded |= {chain.bn} - {None}
        self.folded |= {block.get_submodule(p.bn.target) for p in pooled}
        fuse(block, graph, chains)
        fuse_pooled(graph, pooled)
        take_codes(functions)
        self.programs[block] = Program.of(graph)

    def _explain(self, block: nn.Module, graph: fx.Graph) -> None:
        for node in graph.nodes:
            module = module_of(block, node)
            if module is not None and is_batch_norm(module):
                reason = why_alone(block, node, self.wanted)
                if reason != NO_CONVOLUTION or module not in self.alone:
                    self.alone[module] = reason

    def _graph(self, block: nn.Module) -> tuple[fx.Graph, list[ASPPNodes]]:
        """Of a block's forward, and the ASPPs in it."""
        atrous = any(max(conv.dilation) > 1 for conv in _convolutions(block))
        if atrous and not is_sequential(block):
            try:
                graph = aspp_graph(block)
            except NotTraceable:
                graph = fx.Graph()
            aspps = [
                aspp
                for aspp in find_aspp(block, graph)
                if all(self.wanted(chain.conv) for chain in aspp.chains)
            ]
            if aspps and self.wanted(block):
                return graph, aspps
        return trace(block), []

    def _plan_functions(self, block: nn.Module, graph: fx.Graph) -> list[fx.Node]:
        """The calls of pooling functions that take byte codes."""
        found, left = find_functional(graph)
        if found and not self.wanted(block):
            left.update(dict.fromkeys(found, "filter_fn"))
            found = []
        calls = [n for n in graph.nodes if n in left or n in found]
        self.functions[block] = [(NAMES[n.target], left.get(n)) for n in calls]
        return found

    def apply(self) -> None:
        infer = self.mode == "infer"
        for block, program in self.programs.items():
            swap(block, Fused)
            block._program = program
        for module in self.modules:
            if self._swaps_conv(module):
                swap(module, Frozen if infer else Atrous)
            elif module in self.folded:
                swap(module, Folded if infer else Folding)
            elif module in self.codes:
                swap(module, Codes)

    def _swaps_conv(self, module: nn.Module) -> bool:
        if not isinstance(module, nn.Conv2d) or why_not_conv(module) or not self.wanted(module):
            return False
        return self.mode == "infer" or may_own(module)

    def report(self, dry_run: bool) -> Report:
        report = Report(self.mode, dry_run)
        for module in self.modules:
            name, kind = self.names[module], type(module).__name__
            swapped, left = self._swapped(module), None
            if swapped is None:
                left = self._left(module)
            if swapped is not None:
                report.swapped.append(Entry(name, kind, swapped))
            elif left is not None:
                report.left.append(Entry(name, kind, left))
            for function, reason in self.functions.get(module, ()):
                entries = report.swapped if reason is None else report.left
                entries.append(Entry(name, function, reason or "byte codes"))
        return report

    def _swapped(self, module: nn.Module) -> str | None:
        if module in self.with_aspp:
            return "fastseg.aspp"
        if module in self.codes:
            return "byte codes"
        if module in self.in_chain:
            return self.in_chain[module]
        if self._swaps_conv(module):
            return "conv"
        return None

    def _left(self, module: nn.Module) -> str | None:
        if module in self.codes_left:
            return self.codes_left[module]
        if isinstance(module, nn.ConvTranspose2d):
            return "fastseg has no transposed convolution"
        if isinstance(module, nn.Conv2d):
            if not self.wanted(module):
                return "filter_fn"
            return why_not_conv(module) or "torch's is as fast in training"
        if is_batch_norm(module) and module not in self.folded:
            return why_not_batch_norm(module) or self._why_alone(module)
        return None

    def _why_alone(self, bn: nn.Module) -> str:
        """Why a batch norm is in no chain."""
        if bn in self.alone:
            return self.alone[bn]
        name = self.names[bn]
        while name:
            name = name.rpartition(".")[0]
            block = self.model.get_submodule(name)
            if block in self.untraceable:
                return f"in {type(block).__name__}: {self.untraceable[block]}"
        return "is not called"
