"""Resident memory of this process, and its peak since a moment (Linux)."""

import ctypes
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
# Writing 5 there sets the peak back to what is resident now (man 5 proc).
_CLEAR = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def supported() -> bool:
    """Whether this system says what the functions below ask."""
    return sys.platform == "linux" and _CLEAR.exists()


def resident() -> int:
    """Bytes resident now, after what was freed has gone back to the system."""
    ctypes.CDLL(None).malloc_trim(0)
    return _field("VmRSS")


def reset_peak() -> None:
    """Begins to look for the peak."""
    resident()
    _CLEAR.write_text(_RESET_PEAK)


def peak() -> int:
    """Most bytes resident since `reset_peak`, or since the process began."""
    return _field("VmHWM")


def _field(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
