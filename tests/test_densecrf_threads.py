"""fastseg.densecrf with any number of threads, callers, calls and processes."""

import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

pytest.importorskip("fastseg._host", reason="the compiled library was not built")

import fastseg.densecrf as dcrf
from fastseg.densecrf import utils
from tests.densecrf_scripts import crf_inference, deeplab, readme_2d, small_case, two_terms


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


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
def test_a_thousand_calls_do_not_grow_memory():
    img, probs = small_case(20, 30)
    for _ in range(100):
        crf_inference(dcrf, utils, img, probs, t=1, labels=5)
    before = resident_bytes()
    for _ in range(1000):
        crf_inference(dcrf, utils, img, probs, t=1, labels=5)
    # A leak of one label volume (12 KB) a call would be 12 MB.
    assert resident_bytes() - before < 4 << 20


def test_forked_child_computes_too():
    program = """if True:
        import os, numpy as np, torch
        import fastseg.densecrf as dcrf
        from fastseg.densecrf import utils
        from tests.densecrf_scripts import readme_2d, small_case
        torch.set_num_threads(2)
        before = readme_2d(dcrf, utils, *small_case(60, 70))
        child = os.fork()
        if child == 0:
            after = readme_2d(dcrf, utils, *small_case(60, 70))
            os._exit(0 if np.array_equal(after, before) else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=root, timeout=60
    )
    assert result.stdout == "0\n", result.stderr
