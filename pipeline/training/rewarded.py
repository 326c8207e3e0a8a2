"""What stages share that learn from rewards of sampled answers: how a profile writes a reward, and what it depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipeline.chain.stage import PARENT, Signature, Stage
from pipeline.models.reward_model import FAMILY
from pipeline.system.config import option
from pipeline.system.errors import UserError
from pipeline.training.chat import ChatOptions

if TYPE_CHECKING:
    from pipeline.chain.run import Run
    from pipeline.data.recipe import Rows
    from pipeline.data.types import Row

_FIRST_ROWS = 64
ROLE = FAMILY  # of the parent that scores answers, where a node has one
UNREAD = {  # keys of trl's trainers that sample → why they are not read
    "disable_dropout": "answers are sampled and learned from without dropout",
    "chat_template_kwargs": "prompts go through the chat template as it is",
}
_MODEL = "model"  # the reward that such a parent is, beside the rules
_JUDGE = "judge"


@dataclass(frozen=True)
class Scored:
    """Options of a stage whose sampled answers are scored.

        rewards: {judge: 1.0, length: {weight: 0.1, greatest: 40}}

    A number is a weight, 0 for a reward that is logged and not learned from; beside `weight` stand the reward's own
    options. `model` is the parent of role `reward`, which has weight 1 where it isn't named.
    """

    recipe: str = option("world", "data recipe that gives its rows")
    rewards: dict[str, Any] = option({}, "rule → weight, or weight and options of the rule; see pipeline/rewards")  # noqa: RUF009


@dataclass(frozen=True)
class RewardOptions(ChatOptions, Scored):
    """Those of a chat stage that trains on what is scored."""


def parts(options: Scored, folder: str = "") -> dict[str, dict[str, Any]]:
    """Return rewards as a mixture takes them; `folder`: of the reward model; UserError where one is written as neither form."""
    faults = []
    found: dict[str, dict[str, Any]] = {}
    for name, given in options.rewards.items():
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            given = {"weight": given}
        if not isinstance(given, Mapping):
            faults.append(f"rewards: {name}: expected a weight, or a mapping with a weight and options, found {given!r}")
            continue
        settings = {key: value for key, value in given.items() if key != "weight"}
        if name == _JUDGE:
            settings.setdefault("recipe", options.recipe)
        if name == _MODEL and "folder" in settings:
            faults.append(f"rewards: {name}: folder: name the model as a parent, `{ROLE}: NODE`, so that the graph knows it")
        found[name] = {"weight": given.get("weight", 1.0), "options": settings}
    if folder:
        found.setdefault(_MODEL, {"options": {}})["options"] = {"folder": folder}
    if faults:
        raise UserError(*faults)
    return found


def needs_model(options: Scored) -> bool:
    """Say whether a reward model must be among the parents: where no rule is given, or `model` is named."""
    return not options.rewards or _MODEL in options.rewards


def checked(options: Scored) -> None:
    """Raise UserError with every fault in the rules, before any model is loaded."""
    from pipeline.rewards.mixture import Mixture

    if rules := _rules(options):
        Mixture(rules, whole=False)


def _rules(options: Scored) -> dict[str, dict[str, Any]]:
    return {name: given for name, given in parts(options).items() if name != _MODEL}


def scorable(options: Scored, rows: Sequence[Row]) -> None:
    """Raise UserError where a rule fails on each of the first rows, whatever is answered, as where all lack what it compares with."""
    from pipeline.rewards import Completion
    from pipeline.rewards.mixture import Mixture

    first = [rows[at] for at in range(min(_FIRST_ROWS, len(rows)))]
    given = [Completion(row["prompt"], str(row.get("answer") or ""), (), (), True, row) for row in first]
    faults = []
    for name, rule in _rules(options).items():
        mixture = Mixture({name: rule}, whole=False)
        scored = mixture.scores(given) if mixture.weights[name] else []
        reasons = [reason for reason in mixture.failures if reason != f"{name}: no score"]
        if scored and reasons and all(score is None for score in scored):
            faults.append(f"rewards: {reasons[0]}, and so for each of the first {len(given):,} rows: there is nothing to learn")
    if faults:
        raise UserError(*faults)


def modules(options: Scored) -> list[Path]:
    """Return the files of the rewards that are used."""
    from pipeline import rewards

    names = {*options.rewards, *([_MODEL] if needs_model(options) else [])}
    return [Path(str(rewards.__file__)).with_name(f"{name}.py") for name in sorted(names)]


def digests(options: Scored) -> dict[str, str]:
    """Return what of a recipe's judge enters the inputs: the code with which it grades."""
    from pipeline.data import recipe as recipes

    judge = parts(options).get(_JUDGE)
    return {f"judge of {judge['options']['recipe']}": recipes.load(judge["options"]["recipe"]).judge_digest()} if judge else {}


class RewardedStage(Stage):
    """A stage that samples answers to prompts and has them scored: by rules, by a reward model as a second parent, or by both."""

    reads = "prompts"
    takes: ClassVar[dict[str, tuple[str, ...]]] = {PARENT: ("causal",), ROLE: (ROLE,)}
    optional = (ROLE,)

    def rows(self, run: Run) -> Rows:
        """Return the recipe's rows; UserError where a rule can score none of them."""
        rows = super().rows(run)
        scorable(run.options, rows.kept)
        return rows

    def signature(self, options: Any) -> Signature:
        """Return that a reward model is needed where no rule is given; UserError where a rule is at fault."""
        checked(options)
        optional = () if needs_model(options) else self.optional
        return Signature(self.reads, self.takes, self.gives, self.makes, optional)

    def evaluators(self, options: Any) -> Sequence[Any]:
        """Return the measure of what answers to held-out prompts are worth by the node's own rewards."""
        from pipeline.training.sampled_reward import SampledReward

        return (SampledReward(),)

    def modules(self, options: Any) -> list[Path]:
        """Return the files of the rewards."""
        return modules(options)

    def digests(self, options: Any) -> dict[str, str]:
        """Return that of the judge, where it grades."""
        return digests(options)
