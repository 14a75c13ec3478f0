"""Port generated models between spellings: ``python -m tests.adapters.generated``, or ``make generated``."""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.adapters.generated.case import Case, composition, mutation

DESCRIPTION = """\
Port generated models between two spellings of the same function, and between two functions.

A composition is a random model in two random spellings; the weights of one go into the
other, and both must agree on examples that the port has not seen. A mutation is a random
model and the same with one thing changed that can be seen in its outputs, each in a
spelling of its own; the port has to be refused. Outcomes:

  exact     loaded strictly, and both models agree: not possible for a mutation
  refused   the port was refused: right for a mutation, not covered yet for a composition
  wrong     weights were loaded, and the models differ: a silent error
  error     something else was raised"""
EXAMPLES = """\
examples:
  python -m tests.adapters.generated --count 1000 --output build/generated.jsonl
  python -m tests.adapters.generated --what mutation --number 17    one case, reduced to what matters

With --output, a run goes on where it was left; seconds there are of processor time. Exits with status 1 if a port is wrong."""
MAKE: dict[str, Callable[..., Case]] = {"composition": composition, "mutation": mutation}
Result = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.adapters.generated",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--what", choices=("both", *MAKE), default="both", help="which cases to run (default: both)")
    parser.add_argument("--count", type=int, default=100, help="how many of each (default: 100)")
    parser.add_argument("--start", type=int, default=0, help="the number of the first one (default: 0)")
    parser.add_argument("--seed", type=int, default=0, help="of all random decisions (default: 0)")
    parser.add_argument(
        "--number", type=int, help="run this case only, and reduce it if its outcome is not the right one"
    )
    parser.add_argument("--output", metavar="PATH", type=Path, help="keep every result there, a line of JSON each")
    options = parser.parse_args()
    what = list(MAKE) if options.what == "both" else [options.what]
    if options.number is not None:
        for one in what:
            print(reduced(one, options.seed, options.number))
        return 0
    results = _kept(options.output, options.seed)
    begun = {(result["what"], result["number"]) for result in results}
    for number in range(options.start, options.start + options.count):
        for one in what:
            if (one, number) not in begun:
                results.append(run(one, options.seed, number))
                _keep(options.output, results[-1])
                if not right(results[-1]):
                    print("{what} {number} ({kind}): {outcome}: {message:.400}".format(**results[-1]), flush=True)
        if sys.stderr.isatty() or number % 20 == 19:
            print(f"{number + 1 - options.start}/{options.count}", file=sys.stderr, flush=True)
    print(summary(results))
    return int(any(result["outcome"] == "wrong" for result in results))


def made(what: str, seed: int, number: int, fixed: Any = None) -> Case:
    return MAKE[what](Random(f"{seed} {what} {number}"), fixed)


def run(what: str, seed: int, number: int) -> Result:
    """What the engine makes of one case."""
    start = time.process_time()
    case = made(what, seed, number)
    outcome, message = case.outcome()
    return {
        "what": what,
        "seed": seed,
        "number": number,
        "kind": case.kind,
        "kinds": case.kinds,
        "outcome": outcome,
        "message": message,
        "seconds": round(time.process_time() - start, 2),
    }


def right(result: Result) -> bool:
    return result["outcome"] == ("exact" if result["what"] == "composition" else "refused")


def reduced(what: str, seed: int, number: int) -> str:
    """A case and, if its outcome is not the right one, with as many decisions made plain as leave the outcome as it is."""
    case = made(what, seed, number)
    outcome, message = case.outcome()
    if not right({"what": what, "outcome": outcome}):
        fixed = {name: dict(choices.taken) for name, choices in case.choices.items()}
        size = len(_unusual(case))
        while size:
            unusual = _unusual(case)
            for start in range(0, len(unusual), size):
                tried = {name: dict(taken) for name, taken in fixed.items()}
                for name, path in unusual[start : start + size]:
                    tried[name][path] = 0
                try:
                    simpler = made(what, seed, number, tried)
                except ValueError:
                    continue
                if simpler.outcome()[0] == outcome:
                    fixed, case = tried, simpler
            size //= 2
        outcome, message = case.outcome()
    lines = [f"{what} {number}: {outcome}: {message}", case.kind, str(case.source.spec)]
    lines += [f"  {name}: {path} = {case.choices[name].unusual[path]}" for name, path in _unusual(case)]
    return "\n".join(line for line in lines if line)


def _unusual(case: Case) -> list[tuple[str, str]]:
    return [(name, path) for name, choices in case.choices.items() for path in choices.unusual]


def summary(results: list[Result]) -> str:
    """How often each outcome came: of all compositions, of those with a kind of spelling, and by kind of mutation."""
    lines = []
    for what in MAKE:
        counts: dict[str, Counter[str]] = {}
        for result in (result for result in results if result["what"] == what):
            for kind in ("all", *(result["kinds"] if what == "composition" else [result["kind"]])):
                counts.setdefault(kind, Counter())[result["outcome"]] += 1
        columns = ("exact", "refused", "wrong", "error")
        if counts:
            lines.append(f"\n{what:44}" + "".join(f"{name:>9}" for name in columns))
        lines += [
            f"{kind:44}" + "".join(f"{count[name]:9}" for name in columns)
            for kind, count in sorted(counts.items(), key=lambda entry: (entry[0] != "all", entry[0]))
        ]
    return "\n".join(lines)


def _kept(path: Path | None, seed: int) -> list[Result]:
    if path is None or not path.exists():
        return []
    return [result for result in map(json.loads, path.read_text().splitlines()) if result["seed"] == seed]


def _keep(path: Path | None, result: Result) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    sys.exit(main())
