"""Every Python example of the README runs, in the order of the page."""

import re
from pathlib import Path

import torch

README = Path(__file__).parents[2] / "README.md"


def test_examples_run():
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(examples) >= 3
    conv = torch.nn.Conv2d(3, 8, 3, padding=2, dilation=2, bias=False)
    model = torch.nn.Sequential(conv, torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
    namespace = {"model": model}  # of the page's first example: the reader's
    for example in examples:
        exec(compile(example, str(README), "exec"), namespace)
    assert namespace["logits"].shape == (1, 19, 65, 97)
    assert namespace["report"].swapped
    assert namespace["x"].grad is not None
