"""Kill nodes at random moments, let the same command run again, and compare what they end with: `python -m tests.torture 100 [NODE ...]`."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.torture.attempt import PHASES
from tests.torture.chain import built, descent
from tests.torture.kills import TRIES, strike, uninterrupted
from tests.torture.outcome import survives


def shuffled(names: list[str], phase: str) -> list[str]:
    """Return names in an order that depends on the phase, so that a few kills meet many nodes."""
    return random.Random(phase).sample(names, len(names))


def main() -> int:
    """Kill as often as asked and print what became of it."""
    kills, names = int(sys.argv[1]) if len(sys.argv) > 1 else 100, sys.argv[2:]
    began = time.time()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        chain = built(Path(folder), names)
        killed = {phase: [name for name in chain.having(phase) if not names or name in names] for phase in PHASES}
        phases = [phase for phase, having in killed.items() if having]
        turns = {phase: itertools.cycle(shuffled(killed[phase], phase)) for phase in phases}
        plan = [(phase, next(turns[phase])) for phase in itertools.islice(itertools.cycle(phases), kills)]
        chain.nodes = descent(chain.nodes, {name for _, name in plan})
        windows = uninterrupted(chain)
        print(f"uninterrupted chain in {time.time() - began:.0f} s; seconds of each phase:")
        for name, seconds in windows.items():
            print(f"  {name:<10} " + ", ".join(f"{phase} {found:.3f}" for phase, found in seconds.items()), flush=True)
        misses: Counter[str] = Counter()

        def one(number: int, phase: str, name: str) -> tuple[str, str]:
            where, rng = Path(folder) / f"kill{number}", random.Random(number)
            for attempt in range(TRIES):
                window = windows[name].get(phase, 0.01) * 0.8**attempt  # it was measured on a machine less busy, or more
                if strike(chain, phase, name, window, where, rng):
                    wrong = survives(chain, name, where)
                    break
                misses[phase] += 1
            else:
                wrong = f"not hit in {TRIES} tries"
            shutil.rmtree(where, ignore_errors=True)
            print(f"  {number + 1:>3}  {phase:<17} {name:<10} {wrong or 'the same'}", flush=True)
            return phase, wrong

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            jobs = [pool.submit(one, number, phase, name) for number, (phase, name) in enumerate(plan)]
            results = [job.result() for job in jobs]
    hit, well = Counter(phase for phase, _ in results), Counter(phase for phase, wrong in results if not wrong)
    print(f"{'phase':<18}{'kills':>6}{'survived':>10}{'misses':>8}")
    for phase in phases:
        print(f"{phase:<18}{hit[phase]:>6}{well[phase]:>10}{misses[phase]:>8}")
    print(
        f"{well.total()} of {kills} killed nodes ended with what the uninterrupted run ended with ({time.time() - began:.0f} s)"
    )
    return int(well.total() < kills)


if __name__ == "__main__":
    sys.exit(main())
