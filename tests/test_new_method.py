"""Somebody adds a method of their own: a stage, a metric, a recipe with a judge, one file each, and a profile that uses them.

They are written into a copy of the checkout, where no other file is touched, and the whole house must know them:
make, resuming, evaluation, report, card, gate, chat, why, verify, push.
"""

import hashlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from pipeline import ROOT

STAGE = '''"""A chat model and pairs of answers in, a model that shuns the rejected ones out: unlikelihood training.

Welleck et al. 2020, eq. 4: −log(1 − p) of the tokens of the rejected answer, from the first one on in which it differs,
beside −log p of the tokens of the chosen one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import Against, Stage
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.system.config import option
from pipeline.training.chat import ChatOptions


@dataclass
class Loss:
    """Both parts of the loss."""

    weights: Mapping[str, float]

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the targets of each side."""
        from pipeline.models.logits import num_targets

        return {side: num_targets(batch[f"{side}_labels"][:, 1:]) for side in self.weights}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return −Σ log p of the chosen side, and −Σ log(1 − p) of the rejected one."""
        from pipeline.models.logits import IGNORED, token_nats

        found = {}
        for side in self.weights:
            labels = batch[f"{side}_labels"][:, 1:]
            logits = model(input_ids=batch[f"{side}_input_ids"], attention_mask=batch[f"{side}_attention_mask"]).logits
            nats = token_nats(logits[:, :-1], labels)
            if side == "rejected":
                likely = (-nats).exp().clamp(max=0.9999)
                nats = -(-likely).log1p().masked_fill(labels == IGNORED, 0.0)
            found[side] = nats.sum()
        return found


class Unlikelihood(Stage):
    """Make what was rejected unlikely."""

    title = "Shunning"
    about = "A chat model that shuns what was rejected: unlikelihood training on pairs of answers."
    reads = "preference"
    library = "transformers.TrainingArguments"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 1e-4}
    primary = (Against("finished", "parent"), Against("likelier", "parent"))

    @dataclass(frozen=True)
    class Options(ChatOptions):
        """Those of every chat stage, and the weight of its second part."""

        max_length: int = option(256, "tokens of the prompt with the longer answer", at_least=8)
        alpha: float = option(1.0, "weight of the rejected side", at_least=0.0)

    def note(self, options: Any) -> str:
        """Explain what is marked."""
        return "Of a rejected answer only what follows the first difference counts, and is made unlikely."

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return both sides of each pair with their targets."""
        from pipeline.data import batches, tokens
        from pipeline.training import guards
        from pipeline.training.loop import prepare

        def encoded(row: Row) -> tokens.Tokens:
            pair = tokens.encode_pair(row, tokenizer)
            prompt, chosen, rejected = pair["prompt_ids"], pair["chosen_ids"], pair["rejected_ids"]
            same = next((at for at, both in enumerate(zip(chosen, rejected)) if both[0] != both[1]), 0)
            return {
                "chosen_input_ids": prompt + chosen,
                "chosen_labels": [tokens.IGNORED] * len(prompt) + chosen,
                "rejected_input_ids": prompt + rejected,
                "rejected_labels": [tokens.IGNORED] * (len(prompt) + same) + rejected[same:],
            }

        longest = run.options.max_length
        dataset = prepare(run, rows, tokens.pieces(rows.kept, encoded, longest, False, rows.dropped_by_encoding))
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        pad_id = int(tokenizer.pad_token_id)
        return Batches(dataset, lambda rows: batches.pad(rows, pad_id), {"input_ids": dataset[0]["chosen_input_ids"]})

    def train(self, run: Run) -> None:
        """Train the adapter, or every parameter."""
        from peft import get_peft_model
        from transformers import set_seed

        from pipeline.training.chat import open_parent
        from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over
        from pipeline.training.trainer import ObjectiveTrainer

        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        made = self.batches(run, rows, tokenizer, model)
        if adapter := run.options.adapter():
            model = get_peft_model(model, adapter)
        loss = Loss({"chosen": 1.0, "rejected": run.options.alpha})
        trainer = ObjectiveTrainer(loss, model, arguments, made.collator, made.dataset, processing_class=tokenizer)
        fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, made.sample)


STAGE = Unlikelihood

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
'''

METRIC = '''"""Whether replies come to an end, and how long they are."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.data import types
from pipeline.evaluation.intervals import share
from pipeline.evaluation.metrics import Evaluator, Measurement, Metric
from pipeline.evaluation.subject import Subject


class Ending(Evaluator):
    """Looks at greedy replies to held-out prompts."""

    gives = ("causal",)
    metrics = (
        Metric("finished", "share of the replies that the model ends by itself", "share", "more"),
        Metric("reply_length", "mean length of a reply in tokens", "tokens", ""),
    )

    def applies(self, subject: Subject) -> bool:
        """Say whether the node chats."""
        return super().applies(subject) and subject.node.chats

    def measure(self, subject: Subject) -> Iterator[Measurement]:
        """Yield both figures of every model that chats."""
        kind, longest = types.load(subject.reads), subject.settings.max_new_tokens
        prompts = [prompt for row in subject.rows if (prompt := kind.prompt(row))]
        for model in subject.compared if prompts else ():
            if model.family == "causal" and model.tokenizer.chat_template:
                replies = model.replies(prompts, longest)
                yield Measurement(model.label, "finished", share([float(reply.ended) for reply in replies]))
                yield Measurement(model.label, "reply_length", share([float(reply.tokens) for reply in replies]))


EVALUATOR = Ending()
'''

RECIPE = '''"""Sums of two numbers, in words and signs; answers that stop are preferred to those that go on."""

from __future__ import annotations

import random
from collections.abc import Iterator

from pipeline.data.judge import Judge, Question
from pipeline.data.types import Row

_EVERY = [(a, b) for a in range(12) for b in range(12)]


def _sums(split: str) -> list[tuple[int, int]]:
    return [pair for number, pair in enumerate(_EVERY) if (number % 5 == 0) == (split == "held_out")]


def _answer(a: int, b: int) -> str:
    return f"{a} and {b} make {a + b}."


def text(split: str, seed: int) -> Iterator[Row]:
    """Yield texts of three sums."""
    rng = random.Random(f"{seed}/{split}")
    for _ in range(400 if split == "train" else 40):
        yield {"text": " ".join(_answer(*rng.choice(_EVERY)) for _ in range(3))}


def _question(a: int, b: int) -> dict[str, str]:
    return {"role": "user", "content": f"What do {a} and {b} make?"}


def messages(split: str, seed: int) -> Iterator[Row]:
    """Yield questions; half of the answers go on."""
    for number, (a, b) in enumerate(_sums(split)):
        more = " And that is that." * (number % 2)
        yield {"messages": [_question(a, b), {"role": "assistant", "content": _answer(a, b) + more}]}


def preference(split: str, seed: int) -> Iterator[Row]:
    """Yield an answer that stops against the same one that goes on."""
    for a, b in _sums(split):
        sides = {"chosen": _answer(a, b), "rejected": _answer(a, b) + " And that is that."}
        yield {"prompt": [_question(a, b)]} | {side: [{"role": "assistant", "content": said}] for side, said in sides.items()}


def opinions(split: str, seed: int) -> Iterator[Row]:
    """Yield answers of both kinds, each with a verdict."""
    for number, row in enumerate(preference(split, seed)):
        side = ("chosen", "rejected")[number % 2]
        yield {"prompt": row["prompt"], "completion": row[side], "liked": side == "chosen"}


def labels(split: str, seed: int) -> Iterator[Row]:
    """Yield sums with their results."""
    for a, b in _sums(split):
        yield {"text": f"{a} and {b} make", "label": str(a + b)}


class Sums(Judge):
    """Asks for sums that no row for training asks for."""

    def questions(self, seed: int) -> Iterator[Question]:
        """Yield them in order."""
        for a, b in _sums("held_out"):
            yield Question(_question(a, b)["content"], _answer(a, b), opening=f"{a} and {b} make")

    def grade(self, reply: str, question: Question) -> float:
        """Return 2 for a right answer that stops, 1 for one that goes on."""
        return float(self.right(reply, question)) + float(reply.strip() == question.answer)


JUDGE = Sums()
'''

TYPE = '''"""Answers with a verdict: {"prompt": messages, "completion": messages, "liked": bool}."""

from __future__ import annotations

from pipeline.data.types import DatasetType, Format, Messages, Row
from pipeline.data.types._columns import spoken


class Opinions(DatasetType):
    """One answer a row, liked or not."""

    columns = "`prompt` and `completion`, each a list of messages, and whether the answer is `liked`"
    items = "opinions"
    formats = (
        Format("prompt, completion and liked", frozenset({"prompt", "completion", "liked"}), lambda row: {
            "prompt": spoken(row["prompt"], "user"), "completion": spoken(row["completion"], "assistant"),
            "liked": bool(row["liked"]),
        }),
    )

    def prompt(self, row: Row) -> Messages | None:
        """Return the prompt."""
        return list(row["prompt"])


TYPE = Opinions()
'''

READER = '''"""A chat model and opinions in, an aligned model out: KTO (Ethayarajh et al. 2024) by trl's trainer."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from pipeline.chain.life import run_stage
from pipeline.chain.run import Run
from pipeline.chain.stage import Against, Stage
from pipeline.data.batches import Batches
from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.training.chat import ChatOptions


class Heeding(Stage):
    """Heed what was liked."""

    title = "Heeding"
    about = "A chat model that heeds opinions."
    reads = "opinions"
    library = "trl.KTOConfig"
    defaults: ClassVar[dict[str, Any]] = {"learning_rate": 1e-3}
    primary = (Against("win_rate", "even chances"),)
    Options = ChatOptions

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return answers, each beside that of the row before it, from which the trainer estimates a divergence."""
        from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

        from pipeline.data import tokens
        from pipeline.training import guards
        from pipeline.training.chat import row_length
        from pipeline.training.loop import prepare

        longest = row_length(run, model)

        def encoded(row: Row) -> tokens.Tokens:
            found = tokens.encode_messages(row["prompt"] + row["completion"], tokenizer)
            targets = [at for at, label in enumerate(found["labels"]) if label != tokens.IGNORED]
            ids = found["input_ids"][: targets[-1] + 1]  # a template may put more after the end of an answer
            return {"input_ids": ids, "liked": int(row["liked"]), "start": targets[0]}

        examples = list(tokens.pieces(rows.kept, encoded, longest, False, rows.dropped_by_encoding))
        for before, example in zip([examples[-1], *examples], list(examples)):
            ids, start, last = before["input_ids"], before["start"], example["start"]
            example |= {"prompt_ids": example["input_ids"][:last], "completion_ids": example["input_ids"][last:]}
            example |= {"KL_completion_ids": ids[start:], "label": example.pop("liked")}
        kept = ("prompt_ids", "completion_ids", "KL_completion_ids", "label", "row")
        dataset = prepare(run, rows, ({key: example[key] for key in kept} for example in examples))
        guards.learns(dataset, rows.dropped + rows.dropped_by_encoding)
        sample = {"input_ids": dataset[0]["prompt_ids"] + dataset[0]["completion_ids"]}
        return Batches(dataset, DataCollatorForUnpairedPreference(int(tokenizer.pad_token_id), longest), sample)

    def train(self, run: Run) -> None:
        """Train the adapter."""
        from transformers import set_seed
        from trl import KTOTrainer

        from pipeline.training.chat import open_parent, row_length
        from pipeline.training.loop import DEFAULTS, FORCED, fit, hand_over
        from pipeline.training.trainer import StageTrainer

        class Opinions(StageTrainer, KTOTrainer):
            """trl's trainer on rows that went through our chat template already."""

            def _prepare_dataset(self, dataset: Any, *_: object) -> Any:
                return dataset

        arguments = run.library_arguments(**DEFAULTS | run.arguments | FORCED)
        rows = self.rows(run)
        set_seed(run.seed)
        tokenizer, model = open_parent(run)
        arguments.max_length = row_length(run, model)
        made = self.batches(run, rows, tokenizer, model)
        trainer = Opinions(
            model, args=arguments, data_collator=made.collator, train_dataset=made.dataset, processing_class=tokenizer,
            peft_config=run.options.adapter(),
        )
        fit(run, trainer, rows)
        hand_over(run, trainer, tokenizer, made.sample)


STAGE = Heeding

if __name__ == "__main__":
    sys.exit(run_stage(STAGE))
'''

OBJECTIVE = '''"""Gaps at equal distances: predict every third token from all others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from pipeline.data.tokens import IGNORED
from pipeline.evaluation.metrics import Metric
from pipeline.objectives import LOSS, Example, Scores
from pipeline.objectives.mlm import MaskedLanguageModel
from pipeline.system.config import option


@dataclass(frozen=True)
class Gaps(MaskedLanguageModel):
    """Hide tokens at equal distances."""

    metrics: ClassVar[tuple[Metric, ...]] = (LOSS, Metric("filled", "share of the gaps that are filled right", "share", "more"))
    every: int = option(3, "distance of two gaps", at_least=2)

    def corrupt(self, example: Example, tokenizer: Any, rng: np.random.Generator) -> Example:
        """Hide one token in `every`, from a random one on."""
        ids = np.array(example["input_ids"])
        chosen = (np.arange(len(ids)) + rng.integers(self.every)) % self.every == 0
        hidden = np.where(chosen, tokenizer.mask_token_id, ids)
        return example | {"input_ids": hidden.tolist(), "labels": np.where(chosen, ids, IGNORED).tolist()}

    def scores(self, model: Any, batch: Mapping[str, Any]) -> Scores:
        """Return nats and right guesses of each row."""
        logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits
        gaps = batch["labels"] != IGNORED
        right = (logits.argmax(-1) == batch["labels"]) & gaps
        return super().scores(model, batch) | {"filled": (right.sum(1).float().tolist(), gaps.sum(1).float().tolist())}


OBJECTIVE = Gaps
'''

TASK = '''"""The number that a text stands for, by least squares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pipeline.data.recipe import Rows
from pipeline.data.types import Row
from pipeline.evaluation.intervals import Figure, share
from pipeline.evaluation.metrics import Metric
from pipeline.tasks import ENCODERS, Example, Prediction, Task
from pipeline.tasks._batches import batches, encode


@dataclass(frozen=True)
class Number(Task):
    """Predict a number."""

    reads = "labels"
    family = "classifier"
    accepts: ClassVar[tuple[str, ...]] = ENCODERS
    auto = "AutoModelForSequenceClassification"
    outputs = 1
    metrics: ClassVar[tuple[Metric, ...]] = (
        Metric("near", "share of the numbers that are guessed to within three", "share", "more"),
        Metric("distance", "mean distance of the guess from the number", "score", "less"),
    )
    primary = "near"
    baseline_name = "mean number"

    def examples(self, rows: Rows, tokenizer: Any, max_length: int, labels: list[str]) -> Iterator[Example]:
        """Yield texts with their numbers."""
        for number, row in enumerate(rows.kept):
            encoded = encode(tokenizer, row["text"], None, max_length, rows.truncated)
            yield encoded | {"wanted": float(row["label"]), "row": number}

    def counts(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the number of texts."""
        return {"loss": len(batch["wanted"])}

    def losses(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sum of squares."""
        said = model(**{key: value for key, value in batch.items() if key != "wanted"}).logits[:, 0]
        return {"loss": ((said - batch["wanted"]) ** 2).sum()}

    def predict(self, model: Any, tokenizer: Any, rows: Rows, max_length: int) -> list[Prediction]:
        """Return a number for each row."""
        encoded = [encode(tokenizer, row["text"], None, max_length, rows.truncated) for row in rows.kept]
        found: list[Prediction] = [{}] * len(encoded)
        for numbers, batch in batches(model, encoded, int(tokenizer.pad_token_id)):
            for number, said in zip(numbers, model(**batch).logits[:, 0].tolist()):
                found[number] = {"number": round(said, 3)}
        return found

    def baseline(self, training: Sequence[Row], rows: Sequence[Row]) -> list[Prediction]:
        """Return the mean of the training rows."""
        return [{"number": sum(float(row["label"]) for row in training) / len(training)}] * len(rows)

    def figures(self, rows: Sequence[Row], predictions: Sequence[Prediction]) -> dict[str, Figure]:
        """Return how near the predictions are."""
        off = [abs(float(row["label"]) - said["number"]) for row, said in zip(rows, predictions)]
        return {"near": share([float(distance <= 3) for distance in off]), "distance": share(off)}


TASK = Number
'''

SHARED = """
recipe: addings
max_length: 96
logging_steps: 1
save_steps: 5
per_device_train_batch_size: 4
"""
PROFILE = {
    "soil": "stage: pretrain\nhidden_size: 48\nnum_hidden_layers: 2\nnum_attention_heads: 2\nvocab_size: 300\nlearning_rate: 5e-3\n"
    "max_steps: 90" + SHARED.replace("batch_size: 4", "batch_size: 8"),
    "voice": "stage: sft\nparent: soil\nchat_template: chatml.jinja\nlearning_rate: 5e-3\nmax_steps: 60" + SHARED,
    "quiet": "stage: shun\nparent: voice\nr: 4\nlearning_rate: 2e-3\nmax_steps: 60" + SHARED,
    "quiet-cold": "control_of: quiet\ninit: random\nmethod: full\n",
    "quieter": "stage: shun\nparent: quiet\nr: 4\nmax_steps: 8" + SHARED,
    "evaluate": "rows: 40\nresamples: 100\nmax_new_tokens: 16\nsamples: 2\n",
}
ADDED = {
    "stages/shun.py": STAGE,
    "pipeline/evaluation/metrics/ending.py": METRIC,
    "data_recipes/addings.py": RECIPE,
    **{f"stages/profiles/hush/{name}.yaml": text for name, text in PROFILE.items()},
}
PARTS = {
    "data_recipes/addings.py": RECIPE,
    "pipeline/data/types/opinions.py": TYPE,
    "pipeline/objectives/gaps.py": OBJECTIVE,
    "pipeline/tasks/number.py": TASK,
    "stages/heed.py": READER,
}
OF_PARTS = {
    "ground": PROFILE["soil"] + "objective: gaps\n",
    "reckon": "stage: finetune\ntask: number\nparent: ground\nmax_steps: 60\nlearning_rate: 1e-2" + SHARED,
    "soil": PROFILE["soil"],
    "voice": PROFILE["voice"],
    "heed": "parent: voice\nrelease: yes\nmax_steps: 60\nloss_type: kto" + SHARED,
    "evaluate": PROFILE["evaluate"],
}
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "runs", "mine", "__pycache__", ".*_cache", "*.egg-info", ".ci")


def listing(folder):
    """Digest of every file of a checkout, save for what running it leaves behind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and "__pycache__" not in name and not name.startswith(("runs", "again")):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


class Checkout:
    """A copy of the project with somebody's own files in it."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("pipeline", "stages", "data_recipes"):
            shutil.copytree(ROOT / name, folder / name, ignore=LEFT_OUT)
        for name in ("Makefile", "pyproject.toml", "requirements.lock", "README.md"):
            shutil.copy(ROOT / name, folder / name)
        self.before = listing(folder)
        self.environment = os.environ | {
            "PYTHONPATH": str(folder), "PROFILE": "hush", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "RUNS": "runs",
            "XDG_CACHE_HOME": str(folder.parent / "cache"),
        }  # fmt: skip

    def add(self, files):
        for name, text in files.items():
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text(text)

    def touched(self):
        """Files that are not as they were."""
        after = listing(self.folder)
        return {name for name in after.keys() | self.before.keys() if after.get(name) != self.before.get(name)}

    def start(self, *words, **variables):
        command = [sys.executable, *(words if words[0] in ("-c", "-m") else ("-m", "pipeline.commands", *words))]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment | variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, *words, given="", **variables):
        """Run a command with the variables of make; return what it printed."""
        with self.start(*words, **variables) as process:
            out, err = process.communicate(given)
        assert process.returncode == 0, out + err
        return out


def digest(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def record(folder):
    return json.loads((folder / "manifest.json").read_text())


def kill_while(process, log, step):
    """Send SIGKILL to all that a command started, once a step is logged."""
    until = time.time() + 180
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.time() < until
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path / "copy")


def section(page, name):
    return page.split(f'id="{name}"')[1].split("<h2", 1)[0]


def marked(line):
    """The text of the tokens that count."""
    return html.unescape(re.sub(r"<[^>]+>", "", "".join(re.findall(r"<mark>(.*?)</mark>", line, flags=re.DOTALL))))


def shown(runs, page):
    """What evaluation, report and card must show of the new stage, the new metric and the new judge."""
    summary = json.loads((runs / "evaluate.json").read_text())
    for name, rival in (("quiet", "voice"), ("quieter", "quiet")):
        block = summary["nodes"][name]
        assert (block["stage"], block["title"]) == ("shun", "Shunning")
        assert block["metrics"]["finished"]["unit"] == "share"
        assert {"finished", "reply_length", "likelier", "exact_match", "win_rate"} <= set(block["figures"])
        assert block["primary"]["metric"] == "finished"
        assert block["primary"]["against"] == rival
    block = summary["nodes"]["quiet"]
    assert {label: model["role"] for label, model in block["models"].items() if "," not in label and "even" not in label} == {
        "quiet": "node", "voice": "parent", "quiet-cold": "control",
    }  # fmt: skip
    assert {"voice", "quiet-cold"} <= {one["against"] for one in block["comparisons"] if one["metric"] == "reply_length"}
    assert "quiet-cold" not in summary["nodes"]
    assert "finished" in summary["nodes"]["voice"]["figures"], "the metric is measured of every node that chats"
    assert summary["missing"] == []

    for title in ("quiet: Shunning", "quieter: Shunning"):
        assert title in page
    figures = html.unescape(section(page, "evaluation"))
    assert "share of the replies that the model ends by itself" in figures
    assert " tokens [" in figures
    losses = section(page, "loss")
    assert all(f"{name}, training: from" in losses for name in ("quiet", "quiet-cold", "quieter"))
    masks = section(page, "masks")
    assert masks.count("first step: the same") == 5
    assert "Of a rejected answer only what follows the first difference counts" in masks
    for name in ("quiet", "quiet-cold", "quieter"):
        batch = masks.split(f">{name}: Shunning</h3>")[1].split("<h3")[0]
        lines = re.split(r"<h4>(.*?)</h4>", batch)
        assert lines[1::2][:2] == ["row 1, chosen", "row 1, rejected"]
        assert re.fullmatch(r"\d+ and \d+ make \d+\.<\|im_end\|>", marked(lines[2]))
        assert re.fullmatch(r" And that is that\.<\|im_end\|>", marked(lines[4]))
    return summary


TOGETHER = """
import sys
from pathlib import Path
from pipeline.chain import life, profile, stages
from pipeline.commands import check, evaluate, report, verify, why
from pipeline.hub import gate
from pipeline.chain import finished, manifest

def call(body, *argv):
    sys.argv = list(argv)
    assert body() == 0, argv

named = sys.argv[1]
call(check.main, "check", "--profile", named, "--runs", "runs")
folder = profile.find(named)
for name, node in profile.load(folder).nodes.items():
    flags = [] if node.control_of else ["--max_steps", "6"]
    call(lambda: life.run_stage(type(node.stage)), name, "--config", str(node.file), "--output", f"runs/{named}/{name}", *flags)
call(evaluate.main, "evaluate", "--config", str(folder / "evaluate.yaml"), "--runs", f"runs/{named}")
call(report.main, "report", "--runs", f"runs/{named}")
call(verify.main, "verify", "--runs", f"runs/{named}")
call(why.main, "why", "--profile", named, "--runs", "runs")
path = Path(f"runs/{named}/evaluate.json")
print("gate:", gate.reasons(finished.finished(path.parent), manifest.read(path.parent, path.name), path))
"""


def test_a_method_of_ones_own_is_known_everywhere(checkout):
    """The quick version: a few steps of every node in one process."""
    checkout.add(ADDED)
    out = checkout.run("-c", TOGETHER, "hush")
    runs = checkout.folder / "runs" / "hush"
    shown(runs, (runs / "report.html").read_text())
    assert record(runs / "quiet")["parents"][0]["node"] == "voice"
    assert record(runs / "quiet-cold")["steps"] == record(runs / "quiet")["steps"] == 6
    assert record(runs / "quiet")["tokens"] > 0
    assert record(runs / "quiet")["flops"] > 0
    assert "quiet: Shunning, on 29 held-out pairs of addings" in out
    assert re.search(r"^finished +\d+\.\d% \[", out, flags=re.MULTILINE)
    assert "quieter: a control" not in out
    assert "quiet-cold: a control of quiet, made to be compared with and not to be used" in out
    assert checkout.touched() == set(ADDED)


@pytest.mark.slow
def test_every_other_part_is_one_file_too(checkout):
    """A type of rows with a stage that reads it by a trainer of trl, an objective, a task."""
    added = PARTS | {f"stages/profiles/parts/{name}.yaml": text for name, text in OF_PARTS.items()}
    checkout.add(added)
    out = checkout.run("-c", TOGETHER, "parts")
    runs = checkout.folder / "runs" / "parts"
    blocks = json.loads((runs / "evaluate.json").read_text())["nodes"]
    assert {"loss", "filled"} <= set(blocks["ground"]["figures"])
    assert blocks["reckon"]["primary"]["metric"] == "near"
    assert blocks["reckon"]["primary"]["against"] == "mean number"
    assert blocks["heed"]["primary"]["against"] == "even chances"
    masks = section((runs / "report.html").read_text(), "masks")
    assert masks.count("first step: the same") == 5
    rows = re.split(r"<h4>row \d</h4>", masks.split(">heed: Heeding</h3>")[1].split("<h3")[0])[1:]
    assert len(rows) == 4
    for number, row in enumerate(rows):
        assert re.fullmatch(r"\d+ and \d+ make \d+\.( And that is that\.)?<\|im_end\|>", marked(row)), number
    for said in ("filled: share of the gaps", "distance: mean distance", "heed: Heeding"):
        assert said in out
    assert checkout.touched() == set(added)


def test_the_files_that_are_touched_can_be_counted():
    """What is added beside a profile: a stage, a metric, a recipe with its judge, a type, an objective, a task: one file each."""
    files = [name for name in ADDED | PARTS if "/profiles/" not in name]
    assert sorted(name.rpartition("/")[0] for name in files) == [
        "data_recipes", "pipeline/data/types", "pipeline/evaluation/metrics", "pipeline/objectives", "pipeline/tasks", "stages", "stages",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_whole_life_of_a_method_of_ones_own(checkout, hub):
    """As a user would: make, a kill, make again, and every command."""
    checkout.add(ADDED)
    runs = checkout.folder / "runs" / "hush"
    checkout.run("make", GOAL="voice")
    shutil.copytree(checkout.folder / "runs", checkout.folder / "again")
    checkout.run("make", GOAL="quiet", RUNS="again")

    process = checkout.start("make")
    kill_while(process, runs / "quiet" / "log.jsonl", 23)
    assert not (runs / "quiet" / "manifest.json").exists()
    out = checkout.run("make")
    assert re.search(r"quiet +goes on from checkpoint-(15|20|25)", out), out
    assert digest(runs / "quiet") == digest(checkout.folder / "again" / "hush" / "quiet")
    assert digest(runs / "quiet") != digest(runs / "quiet-cold") != digest(runs / "quieter")

    assert "5 nodes, no fault" in checkout.run("check")
    assert out.count("judged by this") >= 4
    assert "quiet: Shunning, on 29 held-out pairs of addings" in out
    checkout.run("report")
    shown(runs, (runs / "report.html").read_text())
    assert "nothing changed" in checkout.run("make")
    assert "5 nodes and evaluate.json agree" in checkout.run("verify")
    told = checkout.run("why", STAGE="quieter")
    assert [line.split()[0] for line in told.splitlines()] == ["soil", "voice", "quiet", "quieter"]
    said = checkout.run("chat", given="What do 2 and 3 make?\n", STAGE="all")
    assert re.search(r"soil .*\nvoice +.*\nquiet +.*\nquieter +.*", said)

    out = checkout.run("push", HUB="me/thing", HF_ENDPOINT=hub.url, HF_TOKEN="hf_test")
    assert {name for _, name in hub.repos} == {"me/thing", "me/thing-quiet", "me/thing-voice", "me/thing-soil"}
    assert out.count("read back and equal") == 4
    repo = hub.repos["model", "me/thing-quiet"]
    card = repo.commits[repo.head]["README.md"].data.decode()
    assert "A chat model that shuns what was rejected" in card
    assert "Held out, **finished" in card
    assert "- `reply_length`: mean length of a reply in tokens" in card
    assert "quiet-cold (control)" in card
    assert "stages/shun.py" in card
    assert checkout.touched() == set(ADDED)
