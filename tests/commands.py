"""vmemu's command line, run in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
import time

import psutil

from vmemu.cli import main

COMMAND = [sys.executable, "-P", "-m", "vmemu"]


def vmemu(*arguments: str, status: int = 0, apart: bool = False) -> subprocess.CompletedProcess[str]:
    """Runs a command, *apart* in a process of its own, which takes a third of a second more."""
    if apart:
        done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=240, check=False)
    else:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True) for _ in range(2))
        name, sys.argv[0] = sys.argv[0], "vmemu"
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main(arguments)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        finally:
            sys.argv[0] = name
        texts = (stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err))  # type: ignore[attr-defined]
        done = subprocess.CompletedProcess([*COMMAND, *arguments], code, *texts)
    assert done.returncode == status, (arguments, done.stdout, done.stderr)
    return done


def wait_until_busy(pid: int, seconds: float) -> None:
    """Until a process and its children have used so much of a CPU, which tells more than the time that has passed."""
    process = psutil.Process(pid)
    while True:
        used = 0.0
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used += sum(one.cpu_times()[:2])
        if used >= seconds:
            return
        time.sleep(0.05)
