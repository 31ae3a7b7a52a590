"""What the tests share: the program run as a command, in a directory of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from example import NOW, RAW, SORTED
from rafay_simulator import Simulator

sys.dont_write_bytecode = True  # no __pycache__ beside the script

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "ncp_metrics.py"
# Fault tests wait as the program does, only shorter.
QUICK = ("BACKOFF_SECONDS=0.01", "RETRY_AFTER_SECONDS=0.05")


def environment(settings: Mapping[str, str], *, measured: bool = True) -> dict[str, str]:
    """Return the settings, and of this process's environment only what does not matter.

    Coverage is not measured where its own locks and files would be what fails.
    """
    prefixes = ("PATH", "COV") if measured else ("PATH",)
    kept = {name: os.environ[name] for name in os.environ if name.startswith(prefixes)}
    return {**kept, "HOME": "/nonexistent", "LANG": "C.UTF-8", **settings}


@dataclass(frozen=True)
class Result:
    """What one run left behind."""

    status: int
    stdout: str
    stderr: str
    files: dict[str, str]

    @property
    def raw(self) -> str:
        """The text of the raw file, of a run at NOW."""
        return self.files[RAW]

    @property
    def sorted(self) -> str:
        """The text of the sorted file, of a run at NOW."""
        return self.files[SORTED]


Run = Callable[..., Result]


def command(*flags: str, constants: tuple[str, ...] = QUICK, now: str = NOW) -> list[str]:
    """Return the command line of a run at a time, with constants of the module changed."""
    return [sys.executable, str(ROOT / "tests/driver.py"), now, *constants, "--", *flags]


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """Give the tests their signals back: the program takes them."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Make an empty directory for the files of a run."""
    path = tmp_path / "out"
    path.mkdir()
    return path


@pytest.fixture
def run(tmp_path: Path, directory: Path) -> Run:
    """Run the program in the empty directory, with a price book, against a simulator or none."""

    def run(
        *flags: str,
        simulator: Simulator | None = None,
        prices: str | None = None,
        constants: tuple[str, ...] = QUICK,
        now: str = NOW,
        timeout: float = 60,
        **settings: str,
    ) -> Result:
        environ = {**(simulator.environ if simulator else {}), **settings}
        if prices is not None:
            (tmp_path / "prices.csv").write_text(prices, encoding="utf-8")
            environ["PRICING_FILE"] = str(tmp_path / "prices.csv")
        done = subprocess.run(
            command(*flags, constants=constants, now=now),
            cwd=directory,
            env=environment(environ),
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        names = sorted(path.name for path in directory.iterdir())
        files = {name: (directory / name).read_bytes().decode() for name in names}
        return Result(done.returncode, done.stdout, done.stderr, files)

    return run
