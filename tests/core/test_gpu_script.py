"""benchmarks/gpu.sh, rehearsed with a device that only sleeps."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as script
from benchmarks.gpu import calibration, cases, figures, profile_calls, runner
from benchmarks.gpu.runner import Group, Results, Step, run_group
from benchmarks.gpu.table import MOST_CHARACTERS, lines, read_modelled
from benchmarks.gpu_model import cases as gpu_model
from benchmarks.harness import Candidate, Case, measure
from tests.core import fake_cuda

MODULE = "tests.core.fake_gpu_cases"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def measured(group: str, folder: Path, seconds: float = 20.0) -> list[dict[str, str]]:
    """Runs a group of the fake device; the rows of the file."""
    results = Results(folder / "figures.csv")
    run_group(Group(group, seconds, MODULE), time.monotonic() + 60, results, folder)
    with results.path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_case_is_a_row_for_each_candidate(tmp_path):
    rows = measured("good", tmp_path)
    assert [(r["case"], r["candidate"]) for r in rows] == [
        (case, name) for case in "ab" for name in ("fastseg", "eager", "slow eager")
    ]
    assert {r["status"] for r in rows} == {"ok"}
    assert rows[0]["gpu_us"] == "20.0"
    assert rows[0]["modelled"] == "op 3x4"
    assert "a kernel's own words" in (tmp_path / "good.log").read_text()


def test_a_bad_case_costs_no_other(tmp_path):
    statuses = {}
    for row in measured("bad", tmp_path):
        statuses.setdefault(row["case"], (row["status"], row["note"]))
    assert list(statuses) == [
        *("red", "raises", "breaks_the_device", "needs_the_device", "hangs", "crashes", "good"),
    ]
    assert statuses["red"] == ("red", "differs by 3")
    assert statuses["raises"] == ("error", "ValueError: no such kernel")
    assert statuses["breaks_the_device"] == ("error", "RuntimeError: illegal memory access")
    assert statuses["needs_the_device"] == ("ok", "")
    assert statuses["hangs"][0] == "timeout"
    assert statuses["hangs"][1].startswith("took over 0.")
    assert statuses["crashes"] == ("crash", "the process ended with 7: --- bad: crashes")
    assert statuses["good"] == ("ok", "")
    assert "ValueError: no such kernel" in (tmp_path / "bad.log").read_text()


def test_a_group_ends_in_time_and_says_what_is_left(tmp_path):
    start = time.monotonic()
    rows = measured("slow", tmp_path, seconds=1.0)
    assert time.monotonic() - start < 5  # all would take as long
    assert {r["case"]: r["status"] for r in rows if r["status"] == "ok"}
    assert rows[-1]["case"] == "number 19"
    assert rows[-1]["status"] == "not run"
    assert len({r["case"] for r in rows}) == 20


@pytest.mark.parametrize(
    ("group", "status", "note"),
    [
        ("hangs", "timeout", "took over 0.5 s"),
        ("broken", "crash", "the process ended with 1: ImportError: no such library"),
    ],
)
def test_a_group_that_does_not_start_is_one_row(tmp_path, monkeypatch, group, status, note):
    monkeypatch.setattr(runner, "START_SECONDS", 0.5)
    (row,) = measured(group, tmp_path)
    assert (row["case"], row["status"], row["note"]) == (f"{group}: start", status, note)


def test_cases_after_one_that_ruins_the_start_are_not_run(tmp_path):
    rows = measured("starts once", tmp_path)
    assert [(r["case"], r["status"]) for r in rows] == [
        *(("crashes", "crash"), ("starts once: start", "crash"), ("good", "not run")),
    ]
    assert rows[-1]["note"] == "its process did not start"


def python(code: str) -> tuple[str, ...]:
    return sys.executable, "-c", code


SECTIONS = (
    Group("good", 20, MODULE),
    Group("bad", 20, MODULE),
    Step(
        "checks",
        1.0,
        {
            "fine": python("import os; print('12 passed in', os.environ['UNIT'])"),
            "wrong": python("print('FAILED test_a\\n1 failed'); raise SystemExit(1)"),
            "endless": python("import time; print('dots', flush=True); time.sleep(60)"),
            "missing": ("no-such-sanitizer",),
        },
        excerpt="^FAILED",
        environment={"UNIT": "seconds"},
    ),
    Group("slow", 20, MODULE),
    Step("late", 20, {"never": python("")}),
)


def test_a_whole_run(tmp_path, capsys):
    modelled = tmp_path / "model.csv"
    modelled.write_text("op,shape,kernel,H200_us,H100_us\nop,3x4,the call,15.5,17\n")
    rows = script.run(SECTIONS, 3.0, tmp_path / "out", modelled)
    text = (tmp_path / "out/summary.txt").read_text()
    assert capsys.readouterr().out.endswith(text)
    assert {r["status"] for r in rows} == {
        *("ok", "red", "error", "timeout", "crash", "failed", "not run"),
    }
    summary = text.splitlines()
    assert summary[0] == "NVIDIA H200 that sleeps"
    by_case = {line.split()[0]: line.split() for line in summary if line}
    assert by_case["a"] == ["a", "20.0", "15.5", "50.0", "2.50", "10.0", "5"]
    assert by_case["b"] == ["b", "20.0", "50.0", "2.50", "10.0", "5"]
    assert by_case["red"] == ["red", "20.0", "50.0", "10.0", "5", "red", "differs", "by", "3"]
    assert "checks: fine ok" in text
    assert "12 passed in seconds" in text
    assert "checks: wrong failed" in text
    assert "FAILED test_a" in summary
    assert "checks: endless timeout" in text
    assert "checks: missing not run" in text
    assert "late: never not run; no time was left" in text
    assert any(line.startswith("slow: ") and line.endswith(" not run") for line in summary)
    with tarfile.open(tmp_path / "out/logs.tar.gz") as archive:
        names = archive.getnames()
    assert {"logs/bad.log", "logs/fine.log", "logs/endless.log"} <= set(names)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        *("figures.csv", "logs.tar.gz", "summary.txt"),
    ]


def test_the_table_is_short_whatever_happened():
    times = {"gpu_us": "123456.7", "floor_us": "12345.6", "host_us": "12345.6"}
    case = {"status": "red", "candidate": "fastseg", "note": "x" * 500} | times
    rows = [{"group": "g", "case": f"{i} " + "y" * 90} | case for i in range(300)]
    checks = {"kind": "command", "status": "failed", "note": "z" * 500}
    rows += [{"group": "tests", "case": f"t{i}"} | checks for i in range(6)]
    table = lines(rows, {}, "machine", ["FAILED " + "w" * 500] * 24)
    assert len("\n".join(table)) <= MOST_CHARACTERS
    assert table[-1] == "300 red, 6 failed"
    assert "more are in figures.csv" in table[-2]
    assert any(line.startswith("tests: t5 failed") for line in table)


def test_modelled_times_are_those_of_the_device(tmp_path):
    path = tmp_path / "model.csv"
    path.write_text("op,shape,kernel,H200_us,H100_us\nop,3x4,copy,1,2\nop,3x4,the call,15.5,17.0\n")
    assert read_modelled(path, "NVIDIA H100 80GB") == {"op 3x4": 17.0}
    assert read_modelled(path, "NVIDIA A100") == {}
    assert read_modelled(tmp_path / "missing.csv", "NVIDIA H200") == {}


def test_the_shell_script_passes_sections_on():
    run = subprocess.run(
        ["benchmarks/gpu.sh", "models"],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "section 'models' is now: python -m benchmarks.optimize" in run.stderr


def test_every_tiny_call_is_right_and_has_its_times(monkeypatch, one_thread):
    monkeypatch.setattr(figures, "measure", partial(measure, min_rounds=1))
    with fake_cuda.install(monkeypatch):
        monkeypatch.setattr(figures, "copy_speed", lambda: 1e12)
        monkeypatch.setattr(figures, "SECONDS", 0.0)
        monkeypatch.setattr(figures, "HOST_ROUNDS", 2)
        jobs = cases.jobs("calls")
        outcomes = {job.name: job.run() for job in jobs}
    for name, outcome in outcomes.items():
        assert outcome.red == "", name
        assert outcome.rows[0]["candidate"] == "fastseg"
        for row in outcome.rows:
            assert set(row) <= set(runner.COLUMNS)
            assert all(float(row[c]) > 0 for c in ("gpu_us", "call_us", "host_us")), (name, row)
    rivals = {row["candidate"] for outcome in outcomes.values() for row in outcome.rows}
    assert "eager" in rivals
    assert "torch.compile" not in rivals


def test_constants_stand_beside_the_models(monkeypatch):
    graph_seconds = iter((3e-6, 5e-6))
    with fake_cuda.install(monkeypatch):
        assert calibration.launch_seconds() > 0
        assert calibration.hertz() > 0
        monkeypatch.setattr(calibration, "graph_seconds", lambda run: next(graph_seconds))
        (job,) = [job for job in calibration.jobs("calibration") if job.name == "l2_bandwidth"]
        (row,) = job.run().rows
    assert row["candidate"] == f"{2 * (8 << 20) / 2e-6:.4g}, 6.5e+12 in the model of H200"


@pytest.mark.filterwarnings("ignore:CUDA is not available")
def test_calls_run_under_profilers(monkeypatch, capsys):
    monkeypatch.setattr(profile_calls, "CALLS", {"a sum": lambda: lambda: torch.ones(8).sum()})
    with fake_cuda.install(monkeypatch):
        for options in ([], ["--once"]):
            monkeypatch.setattr(sys, "argv", ["profile_calls", *options])
            profile_calls.main()
    assert "aten::sum" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dense_crf, high", "class map"])
def test_profiled_calls_run(monkeypatch, name):
    with fake_cuda.install(monkeypatch), torch.no_grad():
        assert profile_calls.CALLS[name]()().shape[0] == 1


def test_a_wrong_result_is_red_and_timed(monkeypatch):
    def differ():
        raise AssertionError("differs\n  by 3")

    case = Case("op", "", [Candidate("fastseg", lambda: None)], differ, 1000)
    with fake_cuda.install(monkeypatch):
        monkeypatch.setattr(figures, "copy_speed", lambda: 1e9)
        outcome = figures.figures(case)
    assert outcome.red == "differs by 3"
    assert outcome.rows[0]["floor_us"] == "1.0"


def test_cases_that_the_model_knows_are_cases_of_the_model():
    known = {f"{case.op} {case.shape}" for case in gpu_model.cases()}
    named = [job.modelled for group in cases.GROUPS for job in cases.jobs(group)]
    assert known == set(named) - {""}


def test_the_table_of_all_cases_has_room_for_each():
    jobs = [(group, job.name) for group in cases.GROUPS for job in cases.jobs(group)]
    assert len(jobs) == len(set(jobs))
    numbers = {"gpu_us": "12345.6", "floor_us": "1234.5", "host_us": "123.4"}
    row = {"status": "ok", "candidate": "fastseg"} | numbers
    rows = [{"group": group, "case": name} | row for group, name in jobs]
    checks = {"kind": "command", "status": "ok", "note": "z" * 100}
    rows += [{"group": "tests", "case": f"t{i}"} | checks for i in range(6)]
    table = lines(rows, {}, "machine", ["FAILED " + "w" * 100] * 12)
    assert table[-1] == f"{len(jobs) + 6} ok"
    assert "more are in figures.csv" not in table[-2]


def test_sections():
    names = [section.name for section in script.chosen([])]
    assert names[0] == "dense-crf"
    assert names[-1] == "sanitize"
    assert [s.name for s in script.chosen(["conv"])] == ["conv"]
    assert [s.name for s in script.chosen(["calibrate"])] == ["calibration", "autotune"]
    assert sum(s.seconds for s in script.chosen(["calibrate"])) <= 240
    with pytest.raises(ValueError, match=r"'build' is now: benchmarks/gpu.sh prepare"):
        script.chosen(["build"])
    with pytest.raises(ValueError, match="no section 'convs'; there are: dense-crf, pooling"):
        script.chosen(["conv", "convs"])
