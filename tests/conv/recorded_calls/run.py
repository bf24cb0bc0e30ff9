"""Runs all checks with a stand-in for the CUDA driver, and prints what each raised.

The checks compare what kernels are launched with when Triton launches them and when a prepared call
does. `test_prepared_calls` runs them so, in a program of their own.
"""

from __future__ import annotations

import json
import sys
import traceback

import torch

from tests.conv.recorded_calls import aspp, atrous_conv2d, surroundings
from tests.conv.recorded_calls.checking import driver


def main():
    """Runs all checks, or those that the arguments name."""
    results = {}
    found = [f for m in (atrous_conv2d, surroundings, aspp) for f in vars(m).values()]
    for function in [f for f in found if getattr(f, "is_check", False)]:
        if sys.argv[1:] and function.__name__ not in sys.argv[1:]:
            continue
        driver.launches()
        try:
            with torch.inference_mode(False):
                function()
            results[function.__name__] = None
        except BaseException:
            results[function.__name__] = traceback.format_exc()
    print(json.dumps(results))
