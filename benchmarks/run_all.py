"""Run the comparisons with the peers, and write their tables into `benchmarks/README.md`.

    python benchmarks/run_all.py [speed] [accuracy] ... [--quick]

Each script prints its tables; here they replace what is between its two marks in the README. With
`--quick`, which shows in minutes that everything runs, the tables are only printed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
README = HERE / "README.md"
SCRIPTS = ("speed", "accuracy", "time_to_accuracy", "peak_memory", "scaling", "robustness")


def insert(text: str, name: str, output: str) -> str:
    """Return the text with what is between the marks of a script replaced."""
    start, stop = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    if text.count(start) != 1 or text.count(stop) != 1:
        raise ValueError(f"{README} must have the lines {start} and {stop} once each.")
    before, rest = text.split(start)
    _, after = rest.split(stop)
    return f"{before}{start}\n\n{output.strip()}\n\n{stop}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("scripts", nargs="*", default=list(SCRIPTS), metavar="SCRIPT")
    parser.add_argument("--quick", action="store_true", help="small runs, not written")
    options = parser.parse_args()
    unknown = set(options.scripts) - set(SCRIPTS)
    if unknown:
        parser.error(
            f"no such script: {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}"
        )
    for name in options.scripts:
        command = [sys.executable, str(HERE / f"{name}.py")] + ["--quick"] * options.quick
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        print(output, flush=True)
        if not options.quick:
            # After each script: the next may take long, or fail.
            dated = f"{date.today():%d %B %Y}. {output}"
            README.write_text(insert(README.read_text(), name, dated))


if __name__ == "__main__":
    main()
