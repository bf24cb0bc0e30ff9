"""Names that modules had before version 0.2, by which old imports and old pickles work.

One module object has both names. Modules that `import fastseg` loads get their old names at once;
the others are found when somebody asks for them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import CodeType, ModuleType

MOVED = {
    "atomic": "_core.atomic",
    "checkpoint": "zoo.checkpoint",
    "compare": "cli.compare",
    "densecrf": "compat.pydensecrf",
    "densecrf.utils": "compat.pydensecrf.utils",
    "evaluate": "train.evaluate",
    "image": "data.image",
    "interrupt": "train.interrupt",
    "pairwise": "_core.pairwise",
    "segmenter": "segment.segmenter",
    "kernels.aspp": "kernels.conv.aspp",
    "kernels.atrous_conv2d": "kernels.conv.atrous_conv2d",
    "kernels.atrous_conv2d_weight_grad": "kernels.conv.weight_grad",
    "kernels.depthwise_conv2d": "kernels.conv.depthwise_conv2d",
    "kernels.exact_gaussian_filter": "kernels.crf.exact_gaussian_filter",
    **{
        f"{layer}.{name}": f"{layer}.{family}.{name}"
        for family, names in {
            "conv": ("aspp", "atrous_conv2d", "depthwise_conv2d", "winograd_conv2d"),
            "pool": ("batch_norm_relu_max_pool2d", "max_pool2d", "max_unpool2d", "pool_codes"),
            "crf": (
                "exact_gaussian_filter",
                "lattice_mean_field",
                "mean_field",
                "permutohedral_filter",
                "permutohedral_lattice",
                "spatial_gaussian_filter",
            ),
        }.items()
        for name in names
        for layer in ("ops", "reference")
    },
    "ops.atrous_conv2d_grad": "ops.conv.atrous_conv2d_grad",
    "ops.dense_conv2d_weight_grad": "ops.conv.dense_conv2d_weight_grad",
    "ops.dense_crf": "ops.crf.dense_crf",
    "ops.im2col_conv2d": "ops.conv.im2col_conv2d",
    "ops.image_layout": "ops.conv.image_layout",
    "ops.separable_atrous_conv2d": "ops.conv.separable_atrous_conv2d",
    # Pickles of optimised models name these.
    "optimize.calls": "optimize.blocks.calls",
    "optimize.convolve": "optimize.blocks.convolve",
    "optimize.guard": "optimize.blocks.guard",
    "optimize.modules": "optimize.blocks.modules",
    "optimize.program": "optimize.blocks.program",
    "optimize.swap": "optimize.blocks.swap",
}
"""New names by old ones, both without ``fastseg.``."""


def keep() -> None:
    """Makes all old names importable."""
    for old, new in MOVED.items():
        module = sys.modules.get(f"fastseg.{new}")
        if module is not None:
            sys.modules[f"fastseg.{old}"] = module
            parent, _, name = f"fastseg.{old}".rpartition(".")
            if not hasattr(sys.modules[parent], name):  # a function may have the name
                setattr(sys.modules[parent], name, module)
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    """A finder of the modules in MOVED, which precedes folders that are left of them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Returns a spec whose loader imports the module by its new name; None for other names."""
        package, _, old = fullname.partition(".")
        if package != "fastseg" or old not in MOVED:
            return None
        return ModuleSpec(fullname, _Loader(f"fastseg.{MOVED[old]}"))


class _Loader(Loader):
    """A loader of a module by its new name."""

    def __init__(self, name: str):
        self.name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Returns the module itself, whose own spec importlib is about to replace."""
        module = importlib.import_module(self.name)
        self.own = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Puts the module's own spec back; its code does not run again."""
        module.__spec__ = self.own

    def get_code(self, fullname: str) -> CodeType | None:
        """Returns the code that ``python -m`` runs."""
        return find_spec(self.name).loader.get_code(self.name)
