"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies, SIGKILL included. Without Linux: nothing happens."""
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (OSError, AttributeError):
        return


def start(
    command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Start `command` in a process group of its own, so that a terminal's Ctrl-C reaches only the parent.

    Args:
        command: program and arguments; no shell is involved.
        environment: variables on top of this process's own.
        log: where its standard output and error go; None: to this process's own.
    """
    return subprocess.Popen(  # noqa: S603 - the command is ours, not a user's
        [str(part) for part in command],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT if log else None,
        start_new_session=True,
        preexec_fn=die_with_parent,  # the callers start no threads before it
    )


def stop(process: subprocess.Popen[bytes], *, within_s: float = 15.0) -> int:
    """Ask the process to end (SIGTERM); after `within_s`, kill its group. Returns its exit code."""
    if process.poll() is None:
        process.terminate()
        try:
            return process.wait(within_s)
        except subprocess.TimeoutExpired:
            kill_group(process)
    return process.wait()


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
