"""A process with two threads that does what its argument says (test_threads.py): lists of calls, as JSON."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time

SYS_EXIT, SYS_EXIT_GROUP = 60, 231


def play(first: list[tuple[str, int]], second: list[tuple[str, int]]) -> None:
    libc, pid = ctypes.CDLL(None), os.getpid()

    def perform(calls: list[tuple[str, int]], wait: float) -> None:
        time.sleep(wait)
        for name, value in calls:
            if name == "sleep":
                time.sleep(0.6)
            elif name == "exec":
                os.execv("/bin/sh", ["sh", "-c", f"test $$ = {pid} || exit 99; exit 7"])
            elif name == "kill":
                os.kill(pid, value)
            else:
                libc.syscall(SYS_EXIT if name == "exit" else SYS_EXIT_GROUP, value)

    threading.Thread(target=perform, args=(second, 0.2)).start()
    perform(first, 0)


if __name__ == "__main__":
    play(*json.loads(sys.argv[1]))
