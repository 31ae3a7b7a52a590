"""The program as a process: signals, faults of the disk and of streams, locales, cron."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any
from unittest.mock import DEFAULT, Mock

import pytest
from conftest import (
    SCRIPT,
    SIGNALS,
    Prepare,
    Run,
    always,
    assert_billed,
    assert_failed,
    cases,
    command,
    contents,
    environment,
    path_has,
    table,
)
from example import RAW, SORTED, tenants, usage
from rafay_simulator import Fault, Request, Simulator, organization

Start = Callable[..., "Popen[str]"]


@pytest.fixture
def start(prepare: Prepare, directory: Path) -> Start:
    """Start a program in the background, ours at NOW unless given; keywords as for `run`."""

    def start(*program: str | Path, stdout: int = PIPE, **more: Any) -> Popen[str]:
        return Popen(
            program or command(),
            cwd=directory,
            env=environment(prepare(**more), measured=False),
            stdout=stdout,
            stderr=PIPE,
            text=True,
        )

    return start


def end(process: Popen[str], number: int = 0) -> tuple[int, str, str]:
    """Send a signal (0: none), and wait for the end; return exit status, stdout and stderr."""
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=50)
    return process.returncode, stdout, stderr


def wait_for_requests(stand_in: Simulator, number: int) -> None:
    """Wait until so many requests have arrived."""
    while len(stand_in.requests) < number:
        time.sleep(0.001)


# Signals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_waiting_run(
    start: Start, stand_in: Simulator, directory: Path, number: signal.Signals
) -> None:
    stall = always(Fault("stall"), path_has("usage"))
    process = start(fault=stall, WORKERS="1")
    wait_for_requests(stand_in, 2)
    status, stdout, stderr = end(process, number)
    assert (status, stdout, contents(directory)) == (128 + number, "", {})
    assert re.fullmatch(f"ncp_metrics: error: .*{number.name}.*\n", stderr)


def test_a_signal_that_is_ignored_from_the_start_ends_nothing(run: Run) -> None:
    def hang_up(request: Request) -> None:
        signal.raise_signal(signal.SIGHUP)

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    assert_billed(run(fault=hang_up))


@pytest.mark.parametrize("numbers", [SIGNALS[:1], SIGNALS])
def test_signals_just_before_the_wait_for_an_answer_end_the_run_with_one_error(
    run: Run, numbers: tuple[signal.Signals]
) -> None:
    def stall(request: Request) -> Fault:
        # In another thread: Python's flag is set, but no wait of the main thread is interrupted.
        for number in numbers:
            signal.raise_signal(number)
        return Fault("stall")

    result = run(fault=stall, constants={"READ_SECONDS": 900, "ATTEMPTS": 1})
    assert result.status in [128 + number for number in numbers]
    assert len(result.errors) == 1
    assert len(result.stderr.splitlines()) == 1


def test_a_signal_at_any_moment_leaves_both_files_or_none(
    run: Run, start: Start, stand_in: Simulator, directory: Path
) -> None:
    records = [usage("o1", str(number), "gpu", "1h") for number in range(2000)]
    more = {"partner": tenants(*records), "WORKERS": "1"}
    requests = len(run(**more).requests)
    for step in range(9):  # from the last request on: bill, write, publish, summary, end
        before = contents(directory)
        process = start(sys.executable, SCRIPT, latency=0.005, **more)
        wait_for_requests(stand_in, requests)
        time.sleep(step * 0.015)
        number = SIGNALS[step % 3]
        status, _, stderr = end(process, number)
        written = contents(directory, before)
        lines = [text.count("\n") for text in written.values()]
        outcomes = {0: [2001, 2001], 128 + number: []}
        assert lines == outcomes.get(status), stderr


def test_a_signal_neither_ends_nor_cuts_a_summary_that_waits_to_be_read(
    start: Start, directory: Path
) -> None:
    acme = organization("o1", "A" * 5000)
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ: less than the summary
    partner = tenants(usage("o1", "i", "gpu", "1h"), listed=[acme])
    process = start(partner=partner, stdout=writer)
    os.close(writer)
    os.read(reader, 1)
    process.send_signal(signal.SIGTERM)
    with open(reader, encoding="utf-8") as stdout:
        summary = stdout.read()
    status, _, _ = end(process)
    assert (status, len(contents(directory))) == (0, 2)
    assert summary.endswith("status: 0\n")


def test_an_interrupt_during_imports_shows_no_traceback(start: Start, tmp_path: Path) -> None:
    slow_import = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "requests.py").write_text(slow_import)
    process = start(SCRIPT, PYTHONPATH=str(tmp_path))
    assert end(process) == (-signal.SIGINT, "", "")


# Files


def fail(*arguments: object) -> object:
    """Fail as a broken disk does, but for the name of the raw file."""
    if not str(arguments[-1]).endswith(RAW):
        raise OSError(5, "Input/output error")
    return DEFAULT  # go on as usual


def terminate(*arguments: object) -> object:
    """Send SIGTERM."""
    signal.raise_signal(signal.SIGTERM)
    return DEFAULT


DISTURB = {"fails": fail, "SIGTERM": terminate}


@table(
    "calls, how, outcome",
    """
    no place for the files  | mkdir        | fails   | status 1, files: 0
    a file is not on disk   | fsync        | fails   | status 1, files: 0
    second file not named   | link replace | fails   | status 1, files: 0
    while files are written | fsync        | SIGTERM | status 143, files: 0
    while they are named    | link replace | SIGTERM | status 0, files: 2
    """,
)
def test_both_files_appear_or_neither(
    run: Run, monkeypatch: pytest.MonkeyPatch, calls: str, how: str, outcome: str
) -> None:
    for name in calls.split():
        real = getattr(os, name)
        monkeypatch.setattr(os, name, Mock(side_effect=DISTURB[how], wraps=real))
    result = run()
    assert f"status {result.status}, files: {len(result.files)}" == outcome


NO_HARD_LINKS = Mock(side_effect=OSError)
TAKEN = {
    "raw": (RAW, os.link),
    "sorted": (SORTED, os.link),
    "raw, where there are no hard links": (RAW, NO_HARD_LINKS),
}


@cases("name, link", TAKEN)
def test_a_name_that_is_taken_is_left_alone(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, link: object
) -> None:
    monkeypatch.setattr(os, "link", link)
    taken = directory / name
    taken.write_text("mine")
    result = run()
    assert_billed(result)
    assert len(result.sorted) == len(result.rows)
    for file in result.files:
        assert file.endswith("-07012026-000001.csv")
    assert taken.read_text() == "mine"


def test_runs_in_one_second_keep_all_their_files(run: Run, start: Start, directory: Path) -> None:
    alone = list(run().files.values())
    for process in [start() for _ in range(4)]:
        end(process)
    together = contents(directory).values()
    assert sorted(together) == sorted(alone * 5)


def test_a_full_disk_leaves_no_file(run_process: Run) -> None:
    result = run_process(wrapper=["prlimit", "--fsize=64"], measured=False)
    assert_failed(result, "File too large")


def test_a_working_directory_that_is_gone_is_a_mistake(run_process: Run) -> None:
    script = 'mkdir gone; cd gone; rmdir ../gone; exec "$@"'
    result = run_process(wrapper=["sh", "-c", script, "sh"])
    assert_failed(result, "the working directory is gone", status=2)


# Streams, locales, cron


@table(
    "redirection",
    """
    no stdout       | >&-
    no stderr       | 2>&-
    neither         | >&- 2>&-
    full stdout     | >/dev/full
    full stderr     | 2>/dev/full
    nobody reads it | > >(true)
    """,
)
def test_unwritable_streams_change_neither_files_nor_status(
    run_process: Run, redirection: str
) -> None:
    wrapper = ["bash", "-c", f'"$@" {redirection}', "bash"]
    result = run_process(wrapper=wrapper, prices="profile,hourly_rate\ngpu,1\n")
    assert (result.status, list(result.files)) == (3, [RAW, SORTED])


@table(
    "variables",
    """
    C locale      | LANG=C
    no UTF-8 mode | LC_ALL=C PYTHONUTF8=0
    ASCII streams | PYTHONIOENCODING=ascii
    """,
)
def test_a_locale_changes_no_byte_of_the_files(run: Run, run_process: Run, variables: str) -> None:
    expected = run()
    result = run_process(wrapper=["env", *variables.split()])
    assert (result.status, result.stderr) == (0, "")
    assert list(result.files.values()) == list(expected.files.values())
    assert "rsted" in result.stdout


def test_the_cron_line_bills_once_at_a_time(start: Start, prepare: Prepare, tmp_path: Path) -> None:
    settings = prepare()
    lines = [f"{name}='{value}'\n" for name, value in settings.items()]
    (tmp_path / ".env").write_text("".join(lines))
    readme = SCRIPT.with_name("README.md").read_text(encoding="utf-8")
    [line] = re.findall(r"(?m)^[0-9*]+(?: [0-9*]+){4} +(.*)$", readme)
    line = line.replace("~/billing", str(tmp_path))
    line = line.replace("ncp_metrics.py", str(SCRIPT))
    line = line.replace(".venv/bin/python", sys.executable)
    line = line.replace("last", "2026-06")  # for an hour, last month's bill is provisional
    unset = dict.fromkeys(settings, "")
    bill = partial(start, "sh", "-c", line, **unset)
    with open(tmp_path / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert end(bill()) == (1, "", "")
    assert end(bill()) == (0, "", "")
    log = (tmp_path / "billing.log").read_text(encoding="utf-8")
    assert log.count(f"File: {tmp_path}/ncp-metrics-") == 2
