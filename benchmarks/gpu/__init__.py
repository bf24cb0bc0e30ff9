"""What one short call on a GPU machine can tell: figures, tests, profiles, sanitizers.

``runner`` and ``worker`` measure groups of cases and run commands under limits of time. ``cases``
and ``calibration`` are the groups, ``__main__`` lists all sections, ``table`` is the end of the
output.
"""
