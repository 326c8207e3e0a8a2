"""Benchmarks by lm-evaluation-harness: what it said of each item is ours, in figures, evaluation, report and card."""

import json

import pytest

pytest.importorskip("lm_eval", reason="lm_eval is not installed: make setup-data")

from data_recipes.benchmarks import world_facts
from pipeline.evaluation import benchmarks
from pipeline.evaluation.subject import StageModel
from pipeline.models.tokenization import render

LIMIT = 12
TASK = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
"""


def counted(model, question, choices):
    """Return which answer a model finds the likeliest, by our own count of nats, and whether it can't read all of a prompt."""
    if model.chats:
        *prompt, blank = render(model.tokenizer, [{"role": "user", "content": question}], answer_next=True)
        begins, answers = [blank], choices  # the harness counts blanks at the end of a prompt with the answer
    else:
        prompt, begins, answers = model.tokenizer.encode(question), [], [f" {choice}" for choice in choices]
    said = [begins + model.tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
    most = int(model.positions) + 1  # the last token is only predicted; a longer prompt loses its beginning
    rows = [{"input_ids": [*prompt, *ids][-most:], "labels": ([-100] * len(prompt) + ids)[-most:]} for ids in said]
    nats = model.nats(rows)
    return nats.index(min(nats)), any(len(prompt) + len(ids) > most for ids in said)


def test_the_harness_says_of_each_item_what_we_count(copy, run):
    status, out, err = run("benchmark", "--runs", copy, "--node", "sft", "--shots", "0", "--limit", str(LIMIT))
    assert status == 0, err
    kept = json.loads((copy / benchmarks.KEPT).read_text())["nodes"]
    assert list(kept) == ["sft", "pretrain"]
    asked = list(world_facts.questions("held_out"))[:LIMIT]
    for name, known in kept.items():
        model = StageModel(str(copy / name), name)
        (entry,) = known["entries"]
        found = [counted(model, one["question"], one["choices"]) for one in asked]
        assert entry["values"] == [float(best == one["answer"]) for one, (best, _) in zip(asked, found, strict=True)], name
        assert entry["cut"] == sum(cut for _, cut in found)
        assert entry["template"] == ("own" if name == "sft" else "")
        assert entry["groups"] == [one["group"] for one in asked]
    assert "world_facts_acc_0_shot" in out
    assert "20.0%" in out  # chance among five
    assert "the beginning of prompts" in out

    assert run("evaluate", "--runs", copy, "--resamples", "20", "--max_new_tokens", "4", "--rows", "3")[0] == 0
    figures = json.loads((copy / "evaluate.json").read_text())["nodes"]["sft"]["figures"]["world_facts_acc_0_shot"]
    assert list(figures) == ["sft", "pretrain", "chance"]
    assert figures["sft"]["value"] == pytest.approx(sum(kept["sft"]["entries"][0]["values"]) / LIMIT)
    assert run("report", "--runs", copy)[0] == 0
    assert "world_facts_acc_0_shot" in (copy / "report.html").read_text()


def test_prompts_hold_as_many_examples_as_are_asked_for(copy, run, monkeypatch):
    """Turns of the conversation where a model chats, and paragraphs where it doesn't; questions about other people."""
    asked = []
    from lm_eval.models.huggingface import HFLM

    loglikelihood = HFLM.loglikelihood

    def seen(self, requests, *more, **named):
        asked.append([request.args[0] for request in requests])
        return loglikelihood(self, requests, *more, **named)

    monkeypatch.setattr(HFLM, "loglikelihood", seen)
    status, out, err = run("benchmark", "--runs", copy, "--node", "sft", "--shots", "0,1,5", "--limit", "2")
    assert status == 0, err
    kept = json.loads((copy / benchmarks.KEPT).read_text())["nodes"]
    for known in kept.values():
        assert [entry["shots"] for entry in known["entries"]] == [0, 1, 5]
    questions = {one["question"] for one in world_facts.questions("held_out")}
    others = {one["question"] for one in world_facts.questions("train")}
    assert not questions & others
    held = {shots: [sum(text in prompt for text in others) for prompts in asked for prompt in prompts
                    if prompt.count("?") == shots + 1] for shots in (0, 1, 5)}  # fmt: skip
    assert all(found and set(found) == {shots} for shots, found in held.items())
    assert all(f"world_facts_acc_{shots}_shot" in out for shots in (0, 1, 5))
    status, _, err = run("benchmark", "--runs", copy, "--node", "sft", "--shots", "100000", "--limit", "2")
    assert status == 2
    assert "SHOTS: 100000: more examples than world_facts can give" in err


def test_another_model_has_no_figures_of_the_one_before(copy, run):
    assert run("benchmark", "--runs", copy, "--node", "sft", "--limit", "4")[0] == 0
    path = copy / "sft" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"outputs": "0" * 64}))
    from pipeline.chain import finished

    assert benchmarks.evaluators(finished.read(copy / "sft")) == []
    assert len(benchmarks.evaluators(finished.read(copy / "pretrain"))) == 1


def test_tasks_of_a_folder_are_found_and_others_refused(copy, run, tmp_path):
    rows = [{"question": f"What is {one}?", "choices": ["a", "b", "c"], "answer": one % 3} for one in range(6)]
    (tmp_path / "letters.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "letters.yaml").write_text(TASK.format(name="letters", file=tmp_path / "letters.jsonl"))
    given = ("--runs", copy, "--node", "sft", "--include", tmp_path)
    status, out, err = run("benchmark", *given, "--tasks", "letters")
    assert status == 0, err
    assert "letters_acc_0_shot" in out
    (tmp_path / "gone.yaml").write_text(TASK.format(name="gone", file=tmp_path / "gone.jsonl"))
    status, _, err = run("benchmark", *given, "--tasks", "gone")
    assert status == 2
    assert "gone" in err
    assert "Traceback" not in err
    status, _, err = run(
        "benchmark", "--runs", copy, "--node", "sft", "--shots", "-1,x", "--limit", "0", "--include", tmp_path / "no"
    )
    assert status == 2
    assert all(word in err for word in ("SHOTS: -1", "SHOTS: x", "--limit 0", "INCLUDE"))


@pytest.mark.slow  # the harness reads its thousands of task files
def test_an_unknown_task_is_refused_with_the_nearest(copy, run):
    status, _, err = run("benchmark", "--runs", copy, "--node", "sft", "--tasks", "hellaswagg")
    assert status == 2
    assert "did you mean hellaswag?" in err
