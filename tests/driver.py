"""Run ncp_metrics.main as a command at a given time: driver.py TIME [CONSTANT=VALUE...] -- ARGS.

Whole-file comparisons need a clock that stands still, and fault tests cannot wait for real
time-outs; the constants are numbers of the module, such as BACKOFF_SECONDS=0.01.
"""

import signal
import sys
from datetime import datetime, timezone
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import ncp_metrics

if __name__ == "__main__":
    time, *constants = sys.argv[1 : sys.argv.index("--")]
    now = datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    for constant in constants:
        name, _, value = constant.partition("=")
        assert hasattr(ncp_metrics, name), name
        setattr(ncp_metrics, name, float(value) if "." in value else int(value))
    status = ncp_metrics.main(sys.argv[sys.argv.index("--") + 1 :], clock=lambda: now)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # as the script does: Python ends undisturbed
    raise SystemExit(status)
