"""Dense CRFs, of numpy and of torch, with any number of threads, callers, calls and processes."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastseg._host", reason="the compiled library was not built")

import fastseg
import fastseg.compat.pydensecrf as dcrf
from fastseg.compat.pydensecrf import utils
from tests.compat.densecrf_scripts import crf_inference, deeplab, readme_2d, small_case, two_terms


def test_same_bits_for_any_number_of_threads():
    img, probs = small_case(90, 110)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(deeplab(dcrf, utils, img, probs))
    assert all(np.array_equal(results[0], r) for r in results)


def run_together(calls):
    """Runs each in a thread of its own, all at once; their results in order."""
    results, barrier = [None] * len(calls), threading.Barrier(len(calls))

    def run(k):
        barrier.wait()
        results[k] = calls[k]()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_eight_threads_at_once():
    cases = [small_case(40 + 7 * k, 50 + 3 * k, 3 + k) for k in range(8)]

    def three_times(k):
        return [readme_2d(dcrf, utils, *cases[k]) for _ in range(3)]

    alone = [readme_2d(dcrf, utils, *case) for case in cases]
    together = run_together([lambda k=k: three_times(k) for k in range(8)])
    for k in range(8):
        assert all(np.array_equal(q, alone[k]) for q in together[k])


def test_eight_threads_share_one_object():
    img, probs = small_case(60, 70)
    d = two_terms(dcrf, img, utils.unary_from_softmax(probs), (3, 3), (80, 13, 10))
    expected = [d.inference(k) for k in range(8)]
    for _ in range(3):
        shared = run_together([lambda k=k: d.inference(k) for k in range(8)])
        assert all(np.array_equal(a, b) for a, b in zip(shared, expected, strict=True))


def test_other_threads_run_meanwhile():
    img, probs = small_case(300, 400, 10)
    done, ticks = threading.Event(), []

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    torch.set_num_threads(1)
    d = two_terms(dcrf, img, utils.unary_from_softmax(probs), (3, 3), (80, 13, 10))
    start = time.perf_counter()
    d.inference(20)
    end = time.perf_counter()
    done.set()
    thread.join()
    assert sum(start < t < end for t in ticks) >= 5


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def by_numpy(unary, image):
    return crf_inference(dcrf, utils, image, unary, t=1, labels=len(unary))


def tensors(unary, image):
    """Energies and picture of one image."""
    return -torch.from_numpy(unary).log(), torch.from_numpy(image).permute(2, 0, 1)


def by_torch(quality):
    def run(unary, image):
        return fastseg.dense_crf(*tensors(unary, image), iterations=2, quality=quality).numpy()

    run.__name__ = quality
    return run


def by_steps(unary, image):
    field = fastseg.MeanField(*tensors(unary, image), quality="compat")
    field.step(2)
    field.kl_divergence()
    return field.q.numpy()


def by_lattice(unary, image):
    lattice = fastseg.PermutohedralLattice(torch.from_numpy(image / 20).permute(2, 0, 1)[None])
    return lattice.filter(torch.from_numpy(unary).double()[None], "symmetric").numpy()


def by_training(unary, image):
    layer = fastseg.nn.DenseCRF(len(unary), iterations=2)
    energies, pixels = tensors(unary, image)
    layer(energies[None].requires_grad_(), pixels[None]).square().sum().backward()
    return np.concatenate([p.grad.flatten() for p in layer.parameters()])


CALLS = (by_numpy, by_torch("compat"), by_torch("high"), by_torch("exact"), by_steps, by_lattice)


@pytest.mark.parametrize("call", [*CALLS, by_training], ids=lambda f: f.__name__)
def test_eight_threads_at_once_of_every_interface(call):
    cases = [small_case(20 + 3 * k, 30 + k, 3 + k)[::-1] for k in range(8)]
    alone = [call(*case) for case in cases]
    together = run_together([lambda case=case: [call(*case) for _ in range(3)] for case in cases])
    for expected, results in zip(alone, together, strict=True):
        assert all(np.array_equal(expected, r) for r in results)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("call", [*CALLS, by_training], ids=lambda f: f.__name__)
def test_a_thousand_calls_do_not_grow_memory(call):
    image, unary = small_case(20, 30)
    for _ in range(100):
        call(unary, image)
    before = resident_bytes()
    for _ in range(200 if call is by_training else 1000):
        call(unary, image)
    # A leak of one label volume (12 KB) a call would be 12 MB, or 2.4 MB in training.
    assert resident_bytes() - before < (2 if call is by_training else 4) << 20


def test_forked_child_computes_too():
    program = """if True:
        import os, numpy as np, torch
        import fastseg.compat.pydensecrf as dcrf
        from fastseg.compat.pydensecrf import utils
        from tests.compat.densecrf_scripts import readme_2d, small_case
        torch.set_num_threads(2)
        before = readme_2d(dcrf, utils, *small_case(60, 70))
        child = os.fork()
        if child == 0:
            after = readme_2d(dcrf, utils, *small_case(60, 70))
            os._exit(0 if np.array_equal(after, before) else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    root = str(Path(__file__).resolve().parents[2])
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert result.stdout == "0\n", result.stderr
