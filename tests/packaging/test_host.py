import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

host = pytest.importorskip("fastseg._host", reason="the compiled library was not built")
confusion_matrix = host.confusion_matrix


def reference(prediction, label, num_classes, ignore_index=None):
    counts = np.zeros((num_classes, num_classes), np.int64)
    counted = np.full(label.shape, True) if ignore_index is None else label != ignore_index
    np.add.at(counts, (label[counted].astype(int), prediction[counted].astype(int)), 1)
    return counts


DTYPES = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", ">i4"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label_dtype", ["uint8", "int64"])
def test_equals_numpy(dtype, label_dtype):
    rng = np.random.default_rng(0)
    prediction = rng.integers(0, 7, (3, 20, 31)).astype(dtype)
    label = rng.integers(0, 8, (3, 20, 31)).astype(label_dtype)
    counts = confusion_matrix(prediction, label, 7, 7)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, reference(prediction, label, 7, 7))


def test_layouts():
    rng = np.random.default_rng(0)
    prediction, label = rng.integers(0, 5, (2, 12, 10))
    for view in (
        lambda a: a[::-2, ::3],
        lambda a: a.T,
        np.asfortranarray,
        lambda a: a[:0],
        lambda a: a[0, 0, ...],
        lambda a: np.broadcast_to(a[:1], (4, 10)),
    ):
        counts = confusion_matrix(view(prediction), view(label), 5)
        np.testing.assert_array_equal(counts, reference(view(prediction), view(label), 5))


def test_ignored_labels():
    prediction, label = np.array([0, 1, 99]), np.array([0, 0, -1])
    counts = confusion_matrix(prediction, label, num_classes=2, ignore_index=-1)
    np.testing.assert_array_equal(counts, [[1, 1], [0, 0]])
    with pytest.raises(ValueError, match="got 99 and -1 at element 2"):
        confusion_matrix(prediction, label, 2)


@pytest.mark.parametrize("bad", [-1, 3])
def test_id_out_of_range(bad):
    good = np.array([[0, 1], [2, 0]])
    wrong = np.array([[0, 1], [bad, 0]])
    with pytest.raises(ValueError, match=f"ids 0 to 2, got {bad} and 2 at element 2"):
        confusion_matrix(wrong, good, 3)
    with pytest.raises(ValueError, match=f"ids 0 to 2, got 2 and {bad} at element 2"):
        confusion_matrix(good, wrong, 3)


def test_bad_arguments():
    ids = np.zeros((2, 3), np.int64)
    with pytest.raises(TypeError, match="prediction must hold integer class ids, got float32"):
        confusion_matrix(ids.astype(np.float32), ids, 3)
    with pytest.raises(TypeError, match="label must hold integer class ids, got bool"):
        confusion_matrix(ids, ids.astype(bool), 3)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(3, 2\)"):
        confusion_matrix(ids, ids.T, 3)
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        confusion_matrix(ids, ids, 0)
    with pytest.raises((ValueError, MemoryError)):
        confusion_matrix(ids, ids, 2**40)


def test_other_threads_run_meanwhile():
    ids = np.zeros(100_000_000, np.int64)  # about 0.1 s of counting
    done = threading.Event()
    ticks = []

    def tick():
        while not done.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    confusion_matrix(ids, ids, 1)
    end = time.perf_counter()
    done.set()
    thread.join()
    # The thread before and after, and at least some of the time between.
    assert sum(start < t < end for t in ticks) >= 5


def test_without_torch():
    """The recipe in the module's docstring, in a process where torch cannot be imported."""
    recipe = host.__doc__.partition("itself:\n\n")[2]
    program = 'import sys\nsys.modules["torch"] = None\n' + textwrap.dedent(recipe)
    program += "import numpy as np\n"
    program += "ids = np.array([0, 1, 1]), np.array([0, 0, 1])\n"
    program += "print(host.confusion_matrix(*ids, 2).tolist())\n"
    program += 'assert "fastseg" not in sys.modules\n'
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "[[1, 1], [0, 1]]\n", result.stderr
