"""What one short call on a GPU machine can tell: figures, tests, profiles, sanitizers.

``runner`` and ``worker`` measure groups of cases and run commands under limits of time. ``cases``,
with ``head_cases``, and ``calibration`` are the groups, which ``figures`` checks and measures;
``__main__`` lists all sections, and ``table`` is the end of the output.
"""
