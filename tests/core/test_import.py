"""What `import fastseg` costs beyond torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Nothing that fastseg imports may import another package, or parts of torch that torch itself
# leaves for later, such as its compiler (1.4 s, 150 MB).
PROGRAM = """if True:
    import sys, torch
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    before, memory = set(sys.modules), resident()
    import fastseg
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    torch_too = [name for name in set(sys.modules) - before if name.startswith("torch.")]
    foreign = sorted(new - {"fastseg"} - set(sys.stdlib_module_names))
    print(foreign + torch_too, (resident() - memory) // 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_import_brings_no_other_package():
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    modules, _, megabytes = result.stdout.strip().rpartition(" ")
    assert modules == "[]"
    assert int(megabytes) < 40
