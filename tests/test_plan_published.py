"""Published training runs: their operations, counted by the planner on faked tensors, beside what was reported.

    python -m pytest -m measured tests/test_plan_published.py -s

Hours are printed beside theirs: at the utilisation that they state, else at the one that the planner assumes.
"""

import math

import pytest
import yaml

from pipeline import ROOT
from pipeline.commands._plan import devices

RUNS = yaml.safe_load((ROOT / "tests" / "data" / "published_runs.yaml").read_text())
MASKED = ("bert", "roberta")
UNCOUNTABLE = {"gopher 280b"}  # its note says why; it is printed and not held


def counted(run):
    """Operations of a whole run: of products with weights, of attention; and the model's parameters."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    from pipeline.training.footprint import of_configuration

    settings = dict(run["architecture"])
    layers = next(key for key in ("num_hidden_layers", "n_layer") if key in settings)
    auto = AutoModelForMaskedLM if settings["model_type"] in MASKED else AutoModelForCausalLM
    found = []
    for count in (1, 2):  # each further layer takes as much
        config = AutoConfig.for_model(**settings | {layers: count})
        model, step = of_configuration(config, auto, run["length"])
        found.append((step.linear, step.attention, model.num_parameters()))
    whole = [one + (settings[layers] - 1) * (two - one) for one, two in zip(*found, strict=True)]
    steps = float(run["tokens"]) / run["length"]
    return whole[0] * steps, whole[1] * steps, whole[2]


@pytest.mark.measured
def test_operations_are_those_that_were_reported():
    print(
        f"\n{'run':<24} {'parameters':>10} {'FLOPs':>9} {'+attention':>10} {'reported':>9} {'ratio':>6}  {'hours':>11} {'theirs':>11}"
    )
    ratios = {}
    for name, run in RUNS.items():
        linear, attention, parameters = counted(run)
        assert math.isclose(parameters, float(run["parameters"]), rel_tol=0.10), (name, parameters)
        ours = linear + attention if run.get("counts") == "all" else linear
        line = f"{name:<24} {parameters / 1e9:>9.2f}B {linear:>9.2e} {linear + attention:>10.2e}"
        if "flops" in run:
            ratios[name] = ours / float(run["flops"])
            line += f" {float(run['flops']):>9.2e} {ratios[name]:>6.3f}"
        else:
            line += f" {'':>9} {'':>6}"
        if "hours" in run:
            share, said = run.get("mfu", devices.UTILISATION), "stated" if "mfu" in run else "assumed"
            hours = devices.chosen(run["device"]).seconds(linear + attention, share) / 3600
            line += f"  {hours:>11,.0f} {run['hours']:>11,} at {share:.0%} of {run['device']} ({said})"
        print(line)
    held = {name: ratio for name, ratio in ratios.items() if name not in UNCOUNTABLE}
    assert len(held) >= 12
    assert all(abs(ratio - 1) <= 0.05 for ratio in held.values()), held


@pytest.mark.parametrize("name", list(RUNS))
def test_each_run_has_its_source(name):
    run = RUNS[name]
    assert run["source"]
    assert "flops" in run or "hours" in run
    assert "hours" not in run or run["device"] in devices.known()
