"""What the modules of an optimised model become, and what runs in each of their calls.

- ``swap.py``, ``modules.py``, ``convolving.py``, ``training.py``: a module becomes one of a
  subclass of its class and nothing else of it changes, so that keys, parameters and hooks stay, and
  undoing it is exact.
- ``program.py``: the new forward of a block. ``guard.py`` asks in each call whether the block is
  what it was when it was traced, by the comparisons of ``conditions.py``; ``pairs.py`` asks the
  same for poolings that hand on byte codes.
- ``rewriting.py``, ``variants.py``: new forwards for the ways to call a block, with optional
  arguments or without.
- ``calls.py``, ``aspp_call.py``, ``head_calls.py``, ``convolve.py``: the calls within a new
  forward, each one op where that is faster.
"""
