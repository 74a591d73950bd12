"""Description of the machine that measures, for the generated tables."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path

import npstream


def describe_machine() -> str:
    """Return a description of this machine, of the main packages, and the date."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "numba"))
    return (
        f"{processor()}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} "
        f"{platform.release()}; Python {platform.python_version()}, {packages}, npstream "
        f"{npstream.__version__}; {datetime.date.today()}, load average "
        f"{os.getloadavg()[0]:.1f} at the start.\n"
    )


def processor() -> str:
    """Return the name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())
