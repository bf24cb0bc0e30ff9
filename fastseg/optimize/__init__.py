"""One line that speeds up other people's models: :func:`optimize_`, undone by :func:`restore_`.

The two functions stand in ``optimize.py``; ``plan.py`` finds out what is to be done to a model
before anything is done, and ``report.py`` says it. The folders, each of which imports from those
above it alone:

- ``classify/``: what a module and a node of a graph compute, whether one of fastseg's ops can
  stand for it, and if not, why. Each is asked once.
- ``trace/``: what a module's forward does, as a graph by torch.fx, and when that is not to be
  trusted.
- ``blocks/``: what modules and forwards become, and what runs in each of their calls.
- ``match/``: patterns of nodes that become one call: convolution, batch norm, residual and
  activation; ASPP; pooling and unpooling; upsampled logits and what reads them.
"""

from fastseg.optimize.optimize import optimize_, restore_
from fastseg.optimize.report import Entry, Report

__all__ = ["Entry", "Report", "optimize_", "restore_"]
