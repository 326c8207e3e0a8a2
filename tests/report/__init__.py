"""The report: evaluations in the form of the real ones, which its tests share."""

from pipeline.chain import manifest

HOSTILE = '<script>alert(1)</script><img src="https://example.org/x.png"> &amp; "quoted" \u202e<b>'


PARENTS = {"pretrain": "unigram", "sft": "pretrain", "dpo": "sft"}


def block_of(node, rival, figure):
    """The figures of one node, in the form of the real ones."""
    models = {node: {"role": "node", "asked": ""}, rival: {"role": "parent" if rival in PARENTS else "baseline", "asked": ""}}
    metrics = {
        "loss": {"meaning": "nats a token", "unit": "nats", "better": "less"},
        "right": {"meaning": "answers that are right", "unit": "share", "better": "more"},
    }
    compared = {"metric": "right", "against": rival, "role": models[rival]["role"], **figure, "better": True}
    return {
        "stage": node, "title": node.upper(), "of": "4 held-out rows of talk", "rows": 4, "models": models, "metrics": metrics,
        "figures": {name: dict.fromkeys(models, figure) for name in metrics}, "comparisons": [compared], "primary": compared,
        "skipped": {"rows that are too long": 3},
    }  # fmt: skip


def summary_of(copy, prompt="Who saw the cat?"):
    """An evaluation in the form of the real one."""
    figure = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 40}
    return {
        "inputs": "0", "measured": {name: manifest.read(copy / name)["outputs"] for name in PARENTS}, "missing": [],
        "nodes": {name: block_of(name, rival, figure) for name, rival in PARENTS.items()},
        "samples": [{"prompt": prompt, "answers": dict.fromkeys(PARENTS, f"The dog did.\n{prompt}")}],
    }  # fmt: skip
