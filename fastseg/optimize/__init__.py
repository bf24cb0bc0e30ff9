"""One line that speeds up other people's models: :func:`optimize_`, undone by :func:`restore_`.

- ``optimize.py``: the two functions.
- ``trace.py``: what a module's forward does, by torch.fx, and when not to trust that.
- ``chains.py``: convolution, batch norm, residual, activation in a graph, put into one call.
- ``aspp.py``, ``aspp_call.py``: ASPP in a graph, and the call that it becomes.
- ``pooling.py``, ``functional_pooling.py``: pooling and unpooling, as modules of the whole model
  and as functions that one forward calls.
- ``eligible.py``: which modules fastseg's ops can stand for, and why not the others.
- ``swap.py``, ``modules.py``: a module becomes one of a subclass of its class and nothing else of
  it changes, so that keys, parameters and hooks stay, and undoing it is exact.
"""

from fastseg.optimize.optimize import optimize_, restore_
from fastseg.optimize.report import Entry, Report

__all__ = ["Entry", "Report", "optimize_", "restore_"]
