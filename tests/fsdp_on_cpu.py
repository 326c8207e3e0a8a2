"""Run a stage's script sharded by FSDP2 on CPUs: `torchrun --nproc_per_node 2 tests/fsdp_on_cpu.py stages/sft.py …`.

On a CPU accelerate replaces FSDP by DDP without a word, although torch's `fully_shard` works on gloo. Here CPUs count among the
devices that it shards for, so that everything else of a sharded run is real: what is saved, resumed, gathered, handed on.
"""

import runpy
import sys
import types

from accelerate import state
from accelerate.utils import DistributedType

kinds = {kind.name: kind for kind in DistributedType}
state.DistributedType = types.SimpleNamespace(**kinds | {"MULTI_NEURON": DistributedType.MULTI_CPU})
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
