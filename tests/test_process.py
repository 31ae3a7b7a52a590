"""The program as a process: signals, faults of the disk and of streams, locales, cron."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from threading import Event
from typing import Any

import pytest
from conftest import SCRIPT, SIGNALS, Prepare, Run, assert_failed, command, contents, environment
from example import FILES, RAW, SORTED, usage
from rafay_simulator import Fault, FaultPlan, Partner, Simulator, Where, first, fixed, path_has

PLACES: dict[str, Where] = {
    "usage": path_has("usage"),
    "organizations": path_has("organizations"),
    "paging": lambda request: "instance_organization_id" in request.query,
}
UNWRITABLE = [">&-", "2>&-", ">&- 2>&-", ">/dev/full", "2>/dev/full", "| true"]
Start = Callable[..., "Popen[str]"]


@pytest.fixture
def start(prepare: Prepare, directory: Path) -> Start:
    """Start a program in the background, ours at NOW unless given; keywords as for `run`."""

    def start(*program: Any, stdout: int = PIPE, stderr: int = PIPE, **more: Any) -> Popen[str]:
        more = {"env": environment(prepare(**more)), "stdout": stdout, "stderr": stderr}
        return Popen(program or command(), cwd=directory, stdin=DEVNULL, encoding="utf-8", **more)

    return start


def end(process: Popen[str], number: int = 0) -> tuple[int, str, str]:
    """Send a signal (0: none), and wait for the end; return exit status, stdout and stderr."""
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=50)
    return process.returncode, stdout, stderr


def stall_once(action: Callable[[], object], where: Where = PLACES["usage"]) -> FaultPlan:
    """Leave the first matching request without an answer, and act when it arrives."""
    stall = first(1, Fault("stall"), where)

    def plan(request: Any) -> Fault | None:
        fault = stall(request)
        if fault:
            action()
        return fault

    return plan


def later(name: str, seconds: int) -> str:
    """Return the name of a file of a run that many seconds after NOW."""
    return name.replace("-000000", f"-00000{seconds}")


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("where", PLACES.values(), ids=PLACES)
def test_a_signal_ends_a_waiting_run(
    start: Start, directory: Path, number: Any, where: Any
) -> None:
    waiting = Event()
    process = start(fault=stall_once(waiting.set, where))
    assert waiting.wait(30)
    status, stdout, stderr = end(process, number)
    assert (status, stdout, contents(directory)) == (128 + number, "", {})
    assert re.fullmatch(f"ncp_metrics: error: .*{number.name}.*\n", stderr)


def test_a_signal_that_is_ignored_from_the_start_ends_nothing(
    start: Start, directory: Path
) -> None:
    waiting = Event()
    plan = stall_once(waiting.set)
    process = start("nohup", *command(constants={"READ_SECONDS": 0.5}), fault=plan)
    assert waiting.wait(30)
    status, _, stderr = end(process, signal.SIGHUP)
    assert (status, stderr, contents(directory)) == (0, "", FILES)


@pytest.mark.parametrize("numbers", [SIGNALS[:1], SIGNALS], ids=["one", "three at once"])
def test_signals_just_before_the_wait_for_an_answer_end_the_run_with_one_error(
    run: Run, monkeypatch: pytest.MonkeyPatch, numbers: tuple[signal.Signals]
) -> None:
    ignored: list[Any] = []  # "Signal 15 ignored due to race condition"
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    # Raised in another thread, they set Python's flag, but interrupt no wait of the main thread.
    plan = stall_once(lambda: list(map(signal.raise_signal, numbers)))
    result = run(WORKERS="1", fault=plan, constants={"READ_SECONDS": 900})
    assert result.status in [128 + number for number in numbers]
    assert (len(result.stderr.splitlines()), len(result.errors), ignored) == (1, 1, [])


def test_a_signal_at_any_moment_leaves_both_files_or_none(
    run: Run, start: Start, stand_in: Simulator, directory: Path
) -> None:
    records = fixed(compute=[usage("o1", str(n), "gpu", "1.00h") for n in range(2000)])
    more = {"partner": Partner([{"id": "o1", "name": "A"}], records), "WORKERS": "1"}
    whole = run("--month=2024-06", **more)
    for step in range(9):  # from the last request on: bill, write, publish, summary, end
        for path in directory.iterdir():
            path.unlink()
        process = start(SCRIPT, "--month=2024-06", latency=0.005, **more)
        while len(stand_in.requests) < len(whole.requests):
            time.sleep(0.001)
        time.sleep(step * 0.015)
        number = SIGNALS[step % 3]
        status, _, stderr = end(process, number)
        outcome = (status, [*contents(directory).values()])
        assert outcome in [(0, [*whole.files.values()]), (128 + number, [])], stderr


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_neither_ends_nor_cuts_a_summary_that_waits_to_be_read(
    start: Start, directory: Path, number: Any
) -> None:
    organizations = [{"id": f"o{n}", "name": f"{n:060}"} for n in range(80)]
    records = fixed(compute=[usage(each["id"], each["id"], "gpu", "1h") for each in organizations])
    reader, writer = os.pipe()
    fcntl.fcntl(writer, 1031, 4096)  # F_SETPIPE_SZ: less than the summary
    process = start(partner=Partner(organizations, records), stdout=writer)
    os.close(writer)
    assert select.select([reader], [], [], 30)[0]
    process.send_signal(number)
    with open(reader, encoding="utf-8") as stdout:
        summary = stdout.read()
    assert (end(process)[0], [*contents(directory)]) == (0, [RAW, SORTED])
    assert f"{directory / SORTED}\nWarnings: 0, status: 0\n" in summary


def test_an_interrupt_during_imports_shows_no_traceback(start: Start, tmp_path: Path) -> None:
    (tmp_path / "requests.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    assert end(start(SCRIPT, PYTHONPATH=str(tmp_path))) == (-signal.SIGINT, "", "")


def fail(*arguments: Any) -> None:
    """Fail as a broken disk does, but for the name of the raw file."""
    if not str(arguments[-1]).endswith(RAW):
        raise OSError(5, "Input/output error")


def terminate(*arguments: Any) -> None:
    """Send SIGTERM."""
    signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("calls", "action", "outcome"),
    [
        pytest.param(["fsync"], fail, (1, {}), id="file not on the disk"),
        pytest.param(["link", "replace"], fail, (1, {}), id="second file not named"),
        pytest.param(["fsync"], terminate, (143, {}), id="signal while files are written"),
        pytest.param(["link", "replace"], terminate, (0, FILES), id="signal while they are named"),
    ],
)
def test_both_files_appear_or_neither(
    run: Run, monkeypatch: pytest.MonkeyPatch, calls: list[str], action: Any, outcome: Any
) -> None:
    for name in calls:
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *to, real=real: (action(*to), real(*to))[1])
    result = run()
    assert (result.status, result.files) == outcome
    assert len(result.errors) == (result.status != 0)


@pytest.mark.parametrize(("name", "hard_links"), [(RAW, True), (SORTED, True), (RAW, False)])
def test_names_that_are_taken_are_left_alone(
    run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, hard_links: bool
) -> None:
    if not hard_links:
        monkeypatch.setattr(os, "link", lambda *_: fail("any name"))
    (directory / name).write_text("mine")
    expected = {later(RAW, 1): FILES[RAW], later(SORTED, 1): FILES[SORTED]}
    assert run().files == {name: "mine", **expected}


def test_a_thousand_names_may_be_taken(run: Run, directory: Path) -> None:
    begin = datetime(2026, 7, 1, tzinfo=timezone.utc)
    for seconds in range(1100):
        moment = begin + timedelta(seconds=seconds)
        (directory / f"ncp-metrics-sorted-{moment:%m%d%Y-%H%M%S}.csv").touch()
    result = run()
    assert (result.status, "ncp-metrics-07012026-001820.csv" in result.files) == (0, True)


def test_a_working_directory_that_is_gone_is_a_mistake(prepare: Prepare, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); os.execv(sys.argv[1], sys.argv[1:])"
    environ = environment(prepare())
    with Popen([sys.executable, "-c", code, *command()], cwd=gone, env=environ, stderr=PIPE) as run:
        _, stderr = run.communicate(timeout=50)
    assert (run.returncode, b"the working directory is gone" in stderr) == (2, True)


def test_four_runs_in_one_second_keep_eight_files(start: Start, directory: Path) -> None:
    processes = [start() for _ in range(4)]
    assert [end(process)[0] for process in processes] == [0] * 4
    expected = {later(name, n): text for n in range(4) for name, text in FILES.items()}
    assert contents(directory) == expected


@pytest.mark.parametrize("room", [64, 512])
def test_a_full_disk_leaves_no_file(run_process: Run, room: int) -> None:
    result = run_process(wrapper=["prlimit", f"--fsize={room}"], measured=False)
    assert_failed(result, "File too large")


def test_an_output_directory_that_disappears_is_an_error(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "removed"
    out.mkdir()
    result = run(OUTPUT_DIR=str(out), fault=stall_once(out.rmdir), constants={"READ_SECONDS": 0.1})
    assert_failed(result, f"{out}: No such file or directory")


@pytest.mark.parametrize("streams", UNWRITABLE)
def test_unwritable_streams_change_neither_files_nor_status(run_process: Run, streams: str) -> None:
    wrapper = ["bash", "-c", f'set -o pipefail; "$@" {streams}', "bash"]
    result = run_process(wrapper=wrapper, prices="profile,hourly_rate\ngpu,1\n")
    assert (result.status, [*result.files]) == (3, [RAW, SORTED])
    last = ["ncp_metrics: warnings: "] if result.warnings else []
    assert [line[:23] for line in result.stderr.splitlines()[len(result.warnings) :]] == last


@pytest.mark.parametrize("locale", ["LANG=C", "LC_ALL=C PYTHONUTF8=0", "PYTHONIOENCODING=ascii"])
def test_a_locale_changes_no_byte_of_the_files(run_process: Run, locale: str) -> None:
    result = run_process(wrapper=["env", *locale.split()])
    assert (result.status, result.stderr, result.files) == (0, "", FILES)
    assert "rsted" in result.stdout


def test_progress_is_drawn_on_a_terminal_and_cleared(start: Start) -> None:
    leader, follower = pty.openpty()
    process = start(latency=0.06, stderr=follower)
    os.close(follower)
    end(process)
    shown = os.read(leader, 10_000).decode()
    os.close(leader)
    assert re.search(r"\r\x1b\[K\d/8: (compute|service) usage of .* \(o\d\)", shown)
    assert shown.endswith("\r\x1b[K")


def test_cron_line_bills_once_at_a_time(start: Start, prepare: Prepare, tmp_path: Path) -> None:
    settings = prepare()
    (tmp_path / ".env").write_text("".join(f"{key}='{settings[key]}'\n" for key in settings))
    (tmp_path / "ncp_metrics.py").symlink_to(SCRIPT)
    readme = SCRIPT.with_name("README.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^[0-9*]+(?: [0-9*]+){4} +(.*)$", readme, re.MULTILINE)
    line = line.replace("~/billing", str(tmp_path)).replace(".venv/bin/python", sys.executable)
    bill = partial(start, "sh", "-c", line, **dict.fromkeys(settings, ""))
    with open(tmp_path / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert end(bill()) == (1, "", "")
    began = datetime.now(timezone.utc)
    assert end(bill()) == (0, "", "")
    raw, sorted_ = sorted(tmp_path.glob("ncp-metrics-*.csv"))
    assert str(sorted_) in (tmp_path / "billing.log").read_text(encoding="utf-8")
    assert {path.stat().st_mode & 0o777 for path in (raw, sorted_)} == {0o600}
    assert raw.name >= f"ncp-metrics-{began:%m%d%Y-%H%M%S}.csv"
