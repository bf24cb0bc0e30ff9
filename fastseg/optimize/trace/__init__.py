"""What a module's forward does, as a torch.fx graph, and when that graph is not to be trusted.

- ``trace.py``: the traces of a model's modules, each made once.
- ``tracer.py``, ``stand_ins.py``: one run of a forward with stand-ins for its tensors.
- ``witness.py``: what the Python of a forward reads, calls and changes meanwhile. It asks
  ``bytecode.py`` what a function's code does, ``origins.py`` whose code runs, ``frames.py`` what a
  frame tells, and ``contents.py`` what mutable objects held before. ``owners.py`` has functions
  and globals as owners of what was read.
- ``class_questions.py``: the modules whose classes a forward asks for, which stay as they are.
- ``memory.py``: which values of a graph may share memory.
"""
