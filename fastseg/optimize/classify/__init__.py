"""What modules and the nodes of a graph compute, and which of fastseg's ops can stand for them.

- ``steps.py``: the class of each module and node, which the patterns are looked for among.
- ``eligible.py``, ``same_padding.py``: why no op can stand for a module.
- ``effects.py``, ``names.py``: what a node returns and which memory it may write to.
"""
