"""Run PortBench: ``python -m tests.portbench``, in the environment that ``make portbench`` creates."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from pyrosys.hub.files import replacing
from tests.portbench.pair import Pair
from tests.portbench.pairs import FAMILIES
from tests.portbench.report import ROOT, outcome, page, summary
from tests.portbench.run import ENGINE

DOCUMENT = ROOT / ".github" / "docs" / "portbench.md"
DESCRIPTION = """\
Port weights between implementations that other people wrote.

Each pair is two models of real packages, tiny and with random weights. It runs in
both directions, each in a process of its own. Outcomes:

  exact            loaded strictly, and both models agree on fresh inputs
  rightly refused  the two do not compute the same function, and the port was refused
  refused          they do, and the port was refused: not covered yet
  wrong            weights were loaded, and the models differ: a silent error
  error            something else was raised, or the time was over

The tables count outcomes by family, by tag and by tool: the same pairs go to plain
load_state_dict, to pairing by shape, to timm and to weightbridge."""
EXAMPLES = """\
examples:
  python -m tests.portbench --list                  what there is
  python -m tests.portbench --pair 'esm-2*'         pairs of these names, with shell wildcards
  python -m tests.portbench --output results.json   keep every message and time

Exits with status 1 if any port is wrong."""


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.portbench",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pair", metavar="GLOB", default="*", help="which pairs to run, by name (default: all)")
    parser.add_argument("--limit", metavar="SECONDS", type=float, default=300, help="time for one run (default: 300)")
    parser.add_argument("--output", metavar="PATH", type=Path, help="also write every result there, as JSON")
    parser.add_argument("--resume", action="store_true", help="go on with the results that --output already holds")
    parser.add_argument("--list", action="store_true", help="list the pairs and run none")
    parser.add_argument("--write-docs", action="store_true", help=f"write {DOCUMENT.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.write_docs and options.pair != "*":
        parser.error("--write-docs needs the results of all pairs; leave out --pair")
    if options.resume and not options.output:
        parser.error("--resume needs --output, the file to go on with")

    chosen = [
        (family, pair) for family, pairs in FAMILIES.items() for pair in pairs if fnmatchcase(pair.name, options.pair)
    ]
    if not chosen:
        parser.error(f"no pair is called {options.pair!r}; --list shows the names")
    if options.list:
        for family, pair in chosen:
            print(f"{family:24}{pair.name}" + ("" if pair.same else "  (not the same function)"))
        return 0

    runs: list[dict[str, Any]] = []
    if options.resume and options.output.exists():
        runs = json.loads(options.output.read_text())
    done = {(run["pair"], run["direction"]) for run in runs}
    for family, pair in chosen:
        for direction in ("forward", "reverse"):
            if (pair.name, direction) in done:
                continue
            runs.append(run_apart(family, pair, direction, options.limit))
            print(f"{len(runs):4}/{2 * len(chosen)}  {line(runs[-1])}", flush=True)
            if options.output:
                with replacing(options.output) as file:
                    file.write(f"{json.dumps(runs, indent=1)}\n".encode())
    print(f"\n{summary(runs)}")
    if options.write_docs:
        DOCUMENT.write_text(page(runs))
    return int(any(outcome(run) == "wrong" for run in runs))


def run_apart(family: str, pair: Pair, direction: str, limit: float) -> dict[str, Any]:
    """Run one direction in a process of its own. What its tools had written before the limit counts."""
    settings = {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "LAYERNORM_TYPE": "torch",  # protenix would compile a kernel of its own
    }
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "tests.portbench.run", pair.name, direction, str(output)]
        try:
            process = subprocess.run(
                command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, timeout=limit
            )
            ending = f"ended with status {process.returncode}: {process.stderr[-1000:]}"
        except subprocess.TimeoutExpired:
            ending = f"took more than {limit:g} s"
        tools = json.loads(output.read_text()) if output.exists() else {}
    return {
        "pair": pair.name,
        "family": family,
        "direction": direction,
        "tags": pair.tags,
        "same": pair.same if direction == "forward" else pair.reverse.same,
        "seconds": round(time.perf_counter() - start, 1),
        "tools": {ENGINE: {"outcome": "error", "message": ending}} | tools,
    }


def line(run: dict[str, Any]) -> str:
    """One run in one line, with the first line of what stood in the way."""
    result = run["tools"][ENGINE]
    seconds, message = result.get("seconds", run["seconds"]), result["message"].partition("\n")[0]
    name = run["pair"] if run["direction"] == "forward" else f"{run['pair']}, reversed"
    return f"{outcome(run):16}{seconds:6.1f} s  {name}" + (f"  [{message[:100]}]" if message else "")


if __name__ == "__main__":
    sys.exit(main())
