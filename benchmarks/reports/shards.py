"""Print what opening a dataset of many shards costs, with a side-car and without it.

python benchmarks/reports/shards.py [--shards N]

The shards themselves do not exist: opening reads only the index. Each opening runs in a process of
its own. Its clock starts after the imports, except those of the side-car's modules. The wall time
depends on the load of the machine, the CPU time hardly does. The memory is the growth of the
process's peak.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import npstream  # noqa: E402
from data import index_entry  # noqa: E402

PROGRAM = """
import json, resource, sys, time
import numpy, npstream
place, action = sys.argv[1:]
npstream.open  # import the functions before the clock starts
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
begin, cpu = time.perf_counter(), time.process_time()
if action == "json":
    with open(place + "/index.json") as file:
        result = json.load(file)
else:
    result = npstream.open(place)
    len(result)
    if action == "fingerprint":
        result.version
seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
print(seconds, cpu, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def measure(place: Path, action: str) -> str:
    """Return seconds, CPU seconds and bytes of memory of an action, as text."""
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(place), action],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    seconds, cpu, nbytes = map(float, output.split())
    return f"{seconds:.2f} s | {cpu:.2f} s | {nbytes / 1e6:,.0f} MB"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1_000_000)
    count = parser.parse_args().shards
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "data"
        place.mkdir()
        with (place / "index.json").open("w") as file:
            file.write('{"version": 2, "shards": [')
            file.writelines(
                f"{', ' if number else ''}{json.dumps(index_entry(number))}"
                for number in range(count)
            )
            file.write("]}")
        print(f"{count:,} shards, NumPy {np.__version__}, npstream {npstream.__version__}\n")
        print("| what | time | CPU time | memory |\n|---|---|---|---|")
        print(f"| `json.load` of `index.json` | {measure(place, 'json')} |")
        print(f"| `npstream.open` without a side-car | {measure(place, 'open')} |")
        npstream.build_index(place, columns=[], hashes=False)
        print(f"| `npstream.open` with a side-car | {measure(place, 'open')} |")
        print(f"| the same, and `ds.version` | {measure(place, 'fingerprint')} |")
        for name in ("index.json", "index.msgpack"):
            print(f"\n{name}: {(place / name).stat().st_size / 1e6:,.1f} MB", end="")
        print()


if __name__ == "__main__":
    main()
