"""How long each phase of an uninterrupted run takes, and a kill at a random moment of one."""

from __future__ import annotations

import os
import random
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.chain import finished
from tests.torture.attempt import PHASES, Attempt, wait
from tests.torture.chain import EVALUATE, Chain

TRIES = 16  # until a phase is hit


def measure(chain: Chain, name: str, where: Path) -> dict[str, float]:
    """Run a node to its end and return how many seconds each of its phases takes, the longest of its kind."""
    attempt = Attempt(chain, name, where)
    phases = {phase: states for phase, states in PHASES.items() if name in chain.having(phase)}
    seconds: dict[str, float] = {}
    begun: dict[str, float] = {}
    while attempt.alive():
        for phase, (begins, ends) in phases.items():
            now = time.perf_counter()
            if begins(attempt) and not ends(attempt):
                begun.setdefault(phase, now)
            elif phase in begun:
                seconds[phase] = max(seconds.get(phase, 0.0), now - begun.pop(phase))
        time.sleep(0.0005)
    if attempt.process.returncode:
        raise SystemExit(attempt.told.read_text())
    now = time.perf_counter()
    return seconds | {phase: max(seconds.get(phase, 0.0), now - start) for phase, start in begun.items()}


def uninterrupted(chain: Chain) -> dict[str, dict[str, float]]:
    """Make the nodes of the profile, parents first, and evaluate; return the seconds of each phase of each."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs: dict[str, Future[dict[str, float]]] = {}

        def one(name: str) -> dict[str, float]:
            for parent in chain.nodes[name].parents.values():
                jobs[parent].result()  # which began before
            return measure(chain, name, chain.reference)

        for name in chain.nodes:
            jobs[name] = pool.submit(one, name)
        windows = {name: job.result() for name, job in jobs.items()}
    released = next((name for name, node in chain.nodes.items() if node.released), "")
    if not released:
        return windows
    for node in finished.lineage(chain.reference / released):
        shutil.copytree(node.folder, chain.lineage / node.name)
    return windows | {EVALUATE: measure(chain, EVALUATE, chain.reference)}


def strike(chain: Chain, phase: str, name: str, window: float, where: Path, rng: random.Random) -> bool:
    """Start a node and kill it within a phase; say whether what is left on disk shows that it was hit."""
    begins, ends = PHASES[phase]
    shutil.rmtree(where, ignore_errors=True)
    attempt = Attempt(chain, name, where)
    kinds = {"steps": 3, "checkpoint save": 3, "sampling": chain.rounds(name) if name != EVALUATE else 1}
    skip = rng.randrange(kinds.get(phase, 1))  # not always the first of its kind
    delay = rng.uniform(0, window)
    reached = wait(attempt, begins)
    for _ in range(skip):
        reached = reached and wait(attempt, ends) and wait(attempt, lambda a: begins(a) and not ends(a))
    until = time.perf_counter() + delay
    while time.perf_counter() < until and attempt.alive():
        time.sleep(min(0.0005, delay))
    running = attempt.alive()
    attempt.kill()
    return reached and running and begins(attempt) and not ends(attempt)
