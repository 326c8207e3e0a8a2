"""Write a SLURM script that makes a profile on many machines and goes on after preemption or a time limit.

    make slurm PROFILE=mine ARGS="--nodes 2 --gpus 8 --time 12:00:00 [--partition NAME] [--account NAME] [--goal sft]"

Each stage is launched on all nodes of the job by srun and torchrun. Shortly before the time limit, or when the job is preempted,
the stage saves a checkpoint and the job is queued again; the next one continues from that checkpoint.
"""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

from pipeline.chain import profile
from pipeline.system import config, process
from pipeline.system.errors import UserError
from pipeline.system.process import say

MAKE = {"profile": "PROFILE", "runs": "RUNS"}
_KEYS = ("profile", "runs", "nodes", "gpus", "processes", "time", "partition", "account", "goal", "grace")
_TIME = re.compile(r"(\d+-)?\d{1,2}(:\d{2}){1,2}|\d+")  # as sbatch reads it: minutes, H:MM:SS, D-HH:MM
_SCRIPT = """\
#!/bin/bash
# Written by `make slurm`; submit it with `sbatch {file}` from the folder of the Makefile, which all nodes must see.
{directives}
cd "${{SLURM_SUBMIT_DIR:-.}}" || exit 1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export LAUNCH="srun --ntasks-per-node=1 --kill-on-bad-exit=1 torchrun --nnodes=$SLURM_NNODES --nproc_per_node={processes} \\
--rdzv_id=$SLURM_JOB_ID --rdzv_backend=c10d --rdzv_endpoint=$head:$((20000 + SLURM_JOB_ID % 20000))"

make {words} &
making=$!
stopping=
trap 'stopping=yes; kill -TERM $making' TERM  # of a preemption, or {grace} seconds before the time limit
wait $making
status=$?
while [ -n "$stopping" ] && kill -0 $making 2>/dev/null; do
  wait $making  # the first one ended with the signal, and the stage still saves its checkpoint
  status=$?
done
if [ -n "$stopping" ] && [ $status -ne 0 ]; then
  scontrol requeue "$SLURM_JOB_ID"  # the same command goes on from the checkpoint
fi
exit $status
"""


def _count(flags: dict[str, str], name: str, usual: int, faults: list[str]) -> int:
    value = flags.get(name, str(usual))
    if not value.isdigit() or (int(value) < 1 and name != "gpus"):
        faults.append(f"command line: {name}: expected a number, found {value!r}")
        return usual
    return int(value)


def _name(flags: dict[str, str], name: str, faults: list[str]) -> str:
    value = flags.get(name, "")
    if value and not re.fullmatch(r"[\w.@,:+-]+", value):
        faults.append(f"command line: {name}: {value!r} has characters that no SLURM name has")
    return value


def script(flags: dict[str, str]) -> tuple[Path, str]:
    """Return where the script belongs and what is in it; UserError with every fault of the flags."""
    faults: list[str] = []
    chosen = profile.load(profile.find(flags.get("profile", "tiny")))
    runs = Path(flags.get("runs", "runs"))
    nodes, gpus = _count(flags, "nodes", 1, faults), _count(flags, "gpus", 8, faults)
    processes, grace = _count(flags, "processes", gpus or 1, faults), _count(flags, "grace", 180, faults)
    partition, account = (_name(flags, name, faults) for name in ("partition", "account"))
    time, goal = flags.get("time", ""), flags.get("goal", "")
    if not _TIME.fullmatch(time):
        faults.append(f"command line: time: expected a limit as sbatch reads it, such as 12:00:00 or 2-00:00, found {time!r}")
    if goal and goal not in chosen.nodes:
        faults.append(f"command line: goal: profile {chosen.name} has no node {goal}; its nodes are {', '.join(chosen.nodes)}")
    if faults:
        raise UserError(*faults)
    folder = runs / chosen.name
    directives = [
        f"--job-name=tristage-{chosen.name}", f"--nodes={nodes}", "--ntasks-per-node=1", *([f"--gpus-per-node={gpus}"] if gpus else []),
        f"--time={time}", f"--signal=B:TERM@{grace}", "--requeue", "--open-mode=append", f"--output={folder}/slurm-%j.out",
        *([f"--partition={partition}"] if partition else []), *([f"--account={account}"] if account else []),
    ]  # fmt: skip
    words = shlex.join([f"PROFILE={chosen.name}", f"RUNS={runs}", *([goal] if goal else [])])
    file = folder / "slurm.sh"
    return file, _SCRIPT.format(
        file=shlex.quote(str(file)), directives="\n".join(f"#SBATCH {one}" for one in directives), processes=processes,
        words=words, grace=grace,
    )  # fmt: skip


def main() -> int:
    """Check the flags, then write the script."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(str(__doc__).strip())
        return 0
    flags, faults = config.only(_KEYS, sys.argv[1:], _KEYS)
    if faults:
        raise UserError(*faults)
    file, text = script(flags)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    file.chmod(0o755)
    say("slurm", f"wrote {file}; next: sbatch {shlex.quote(str(file))}")
    return 0


if __name__ == "__main__":
    sys.exit(process.execute(main))
