"""The libraries are imported with less work, and do the same afterwards."""

import gc
import importlib.metadata
import os
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from pipeline import ROOT
from pipeline.system import deferred_dtensor, imports
from tests.conftest import flags_of, last

HEAVY = ("torch._dynamo", "torch.distributed.tensor", "sympy", "wandb", "trackio", "scipy")
COMMAND = """
import os, runpy, sys
if sys.argv.pop(1) == "as they come":
    from pipeline.system import imports
    imports.quicken = imports.settle = lambda: None
try:
    runpy.run_path("stages/sft.py", run_name="__main__")
finally:
    print("seconds", sum(os.times()[:2]))
"""


STANDS_IN = pytest.mark.skipif(len(imports.known()) == 1, reason="torch is left as it is, since there is an accelerator")


def test_boxes_are_matched_as_scipy_matches_them():
    from transformers.loss import loss_for_object_detection, loss_rt_detr

    costs = [[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]]
    for module in (loss_for_object_detection, loss_rt_detr):
        rows, columns = module.linear_sum_assignment(costs)
        assert (rows.tolist(), columns.tolist()) == ([0, 1, 2], [1, 0, 2])
    import scipy.optimize

    assert scipy.optimize.minimize_scalar(lambda x: (x - 2) ** 2).x == pytest.approx(2), "the stand-in is gone"


def test_the_models_of_transformers_are_read_once_and_are_all_there():
    import transformers
    from transformers.utils import import_utils

    folder = Path(transformers.__file__).parent / "models"
    one, other = (import_utils.create_import_structure_from_path(path) for path in (folder, str(folder / "__init__.py")))
    assert one is other
    assert other == import_utils.create_import_structure_from_path.__wrapped__.__wrapped__(folder)
    assert "modeling_llama" in str(other["llama"])


def test_what_a_model_file_lists_is_what_transformers_finds_in_it():
    import transformers
    from transformers.utils import import_utils

    files = sorted((Path(transformers.__file__).parent / "models" / "llama").glob("*.py"))
    texts = [path.read_text(encoding="utf-8") for path in files] + [
        "",
        "x = '__all__'",
        "__all__ = ['a']\n__all__ = [\n'b',\n]",
    ]
    listed = [import_utils.fetch__all__(text) for text in texts]
    assert listed == [import_utils.fetch__all__.__wrapped__(text) for text in texts]
    assert any("LlamaForCausalLM" in names for names in listed)
    assert listed[-1] == ["b"]


def test_packages_are_those_that_python_finds():
    code = """
        import importlib.metadata
        found = importlib.metadata.packages_distributions()
        print(found == theirs(), found["torch"])
    """
    assert run(code) == ["True", "['torch']"]


def test_accelerate_looks_for_a_package_once(monkeypatch):
    from accelerate.utils import imports as theirs

    assert theirs.is_peft_available()
    monkeypatch.setattr(importlib.metadata, "metadata", lambda name: pytest.fail(f"asked for {name} again"))
    assert theirs.is_peft_available()


def test_quickening_twice_is_quickening_once():
    before = list(sys.meta_path), importlib.metadata.packages_distributions
    imports.quicken()
    assert (sys.meta_path, importlib.metadata.packages_distributions) == before


def test_torch_is_left_as_it_is_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(imports, "_DRIVERS", ("null",))  # a device that every machine has
    assert imports.known.__wrapped__() == (imports._AROUND,)
    monkeypatch.setattr(imports, "_DRIVERS", ("none-of-this-name*",))
    assert len(imports.known.__wrapped__()) == (3 if sys.platform == "linux" else 1)


def test_what_is_settled_is_not_searched_again():
    gc.unfreeze()
    imports.settle.cache_clear()
    imports.settle()
    frozen = gc.get_freeze_count()
    assert frozen > 1000
    kept = [[] for _ in range(100)]
    imports.settle()
    assert gc.get_freeze_count() <= frozen, "objects of one training are not kept for ever in a process of many"
    del kept


def run(code, **environment):
    """Run code in a process of its own in which imports are quick, and return what it prints, word by word."""
    code = f"import importlib.metadata\ntheirs = importlib.metadata.packages_distributions\nfrom pipeline.system import imports\nimports.quicken()\n{textwrap.dedent(code)}"
    around = {key: value for key, value in os.environ.items() if not key.startswith(deferred_dtensor._LAUNCHED)}
    around |= {"PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=around, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()


@STANDS_IN
def test_a_first_step_imports_neither_compiler_nor_divided_tensors_nor_trackers(chain, data, tmp_path):
    flags = last([*flags_of("sft", chain, data, tmp_path / "sft"), "--max_steps", "1"])
    code = f"""
        import runpy, sys
        sys.argv = ["stages/sft.py", *{flags!r}]
        try:
            runpy.run_path("stages/sft.py", run_name="__main__")
        finally:
            print("loaded", *(name for name in {HEAVY!r} if name in sys.modules))
    """
    out = run(code)
    assert out[out.index("loaded") + 1 :] == [], out
    assert (tmp_path / "sft" / "manifest.json").exists()


@STANDS_IN
@pytest.mark.slow  # like the next two, it holds against a version of torch, whatever changes here
def test_the_compiler_learns_what_was_asked_before_it_came():
    code = """
        import torch
        seen = []
        marked = torch.compiler.disable(lambda x: seen.append(torch.compiler.is_compiling()) or x * 2)
        whole = torch.compiler.allow_in_graph(lambda x: x.numpy() is None or x + 1)
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        weight.square().sum().backward()
        optimizer.step()
        from transformers import AutoModelForCausalLM, LlamaConfig
        print("torch._dynamo" in __import__("sys").modules, round(float(marked(weight)[0]), 3), round(float(weight[0]), 4))
        import torch._dynamo
        graphs = []
        compiled = torch.compile(lambda x: marked(x + 1) + 1, backend=lambda graph, _: graphs.append(graph) or graph.forward)
        print(float(compiled(torch.zeros(1))), len(graphs), any(seen))
        from torch._dynamo import trace_rules
        from pipeline.system import deferred_compiler
        print(id(whole) in trace_rules._allowed_callable_ids, deferred_compiler._left_out, deferred_compiler._taken_whole)
    """
    assert run(code) == ["False", "1.798", "0.899", "3.0", "2", "False", "True", "[]", "[]"]


@STANDS_IN
@pytest.mark.slow
def test_symbolic_shapes_of_numbers_are_what_torch_says_of_them():
    code = """
        import itertools, sys
        import torch
        from pipeline.system import deferred_compiler
        ours = dict(vars(sys.modules[deferred_compiler._SHAPES]))
        assert "sympy" not in sys.modules
        from torch.fx.experimental.symbolic_shapes import ShapeEnv
        theirs = sys.modules[deferred_compiler._SHAPES]
        assert ShapeEnv is theirs.ShapeEnv and torch.fx.experimental.symbolic_shapes is theirs
        values = (True, False, 3, 0, (2, 3), torch.Size([2, 3]), (2,), ShapeEnv().create_unbacked_symint())
        def said(function, *given):
            try:
                return repr(function(*given))
            except Exception:
                return "raised"
        for name in deferred_compiler._OF_NUMBERS:
            for given in [(value,) for value in values] + list(itertools.product(values[:-1], repeat=2)):
                them = said(getattr(theirs, name), *given)
                assert them in ("raised", said(ours[name], *given)), (name, given, them)
        print("alike")
    """
    assert run(code) == ["alike"]


@STANDS_IN
@pytest.mark.slow
@pytest.mark.parametrize("launched", [{}, {"RANK": "0", "WORLD_SIZE": "1"}], ids=["alone", "launched"])
def test_divided_tensors_are_known_in_processes_of_a_launcher(launched):
    code = """
        import torch, trl
        from transformers.distributed import parallel_utils
        from trl.trainer import base_trainer, utils
        from accelerate.utils import other
        from torch.distributed.tensor import DTensor
        print(utils.DTensor is DTensor, getattr(parallel_utils, "DTensor", None) is DTensor, other.is_torch_distributed_available())
        from trl.trainer import distillation_trainer
        print(torch.distributed.tensor.DTensor is DTensor)
    """
    assert run(code, **launched) == [str(bool(launched))] * 3 + ["True"]


def test_trl_imports_no_tracker_and_sees_a_run_of_one_once_there_is_one():
    code = """
        import importlib.util, sys
        from trl.extras import profiling
        from trl.trainer import base_trainer, distillation_trainer, grpo_trainer, rloo_trainer
        trackers = [name for name in ("wandb", "mlflow", "trackio") if importlib.util.find_spec(name)]
        print(*(name for name in trackers if name in sys.modules))
        if "wandb" in trackers:
            assert base_trainer.wandb.run is grpo_trainer.wandb.run is None
            import wandb
            wandb.run = "offline"
            assert base_trainer.wandb.run == rloo_trainer.wandb.run == "offline"
        if "mlflow" in trackers:
            assert profiling.mlflow.active_run() is None and "mlflow" in sys.modules
    """
    assert run(code) == []


@STANDS_IN
@pytest.mark.measured
def test_the_time_from_a_command_to_the_end_of_one_step(chain, data, tmp_path):
    """CPU seconds of an SFT of one step, with the libraries as they come and with this; medians of five, interleaved."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    spent = {"as they come": [], "quickened": []}
    for number in range(5):
        for how, seconds in spent.items():
            flags = last([*flags_of("sft", chain, data, tmp_path / f"{how}-{number}"), "--max_steps", "1"])
            command = [sys.executable, "-c", COMMAND, how, *flags]
            out = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
            seconds.append(float(out.rpartition("seconds ")[2]))
    medians = {how: statistics.median(seconds) for how, seconds in spent.items()}
    share = medians["quickened"] / medians["as they come"]
    print(
        f"\nSFT of one step: {medians['as they come']:.1f} s of CPU as they come, {medians['quickened']:.1f} s quickened: {share:.2f}"
    )
    assert share < 0.9
    weights = {(tmp_path / f"{how}-0" / "model.safetensors").read_bytes() for how in spent}
    assert len(weights) == 1
