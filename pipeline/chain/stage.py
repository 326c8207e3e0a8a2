"""What a stage declares about itself. Everything else in the house reads this declaration and names no stage."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pipeline.system.errors import UserError

if TYPE_CHECKING:
    from pipeline.chain.run import Run
    from pipeline.chain.starter import Facts, Lines
    from pipeline.data.batches import Batches
    from pipeline.data.recipe import Rows
    from pipeline.data.types import Row

PARENT, DATA = "parent", "data"  # roles of a parent: whose model a stage goes on from; whose rows it reads
ROWS = "rows"  # what a stage gives that hands on rows and no model


@dataclass(frozen=True)
class Signature:
    """What goes into a stage and what comes out, under given options."""

    reads: str = ""  # dataset type of its rows; empty where it reads none
    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # role → families of models that may fill it
    gives: str = "causal"  # family of the model that it hands on, or ROWS
    makes: str = ""  # dataset type of the rows that it hands on, where it gives rows
    optional: tuple[str, ...] = ()  # roles that may be left out


class Against(NamedTuple):
    """A metric by which a stage is judged, and the rival: a role such as `parent` or `teacher`, `control`, or a baseline."""

    metric: str
    rival: str


class Predictor(NamedTuple):
    """Predicts rows without labels."""

    reads: str  # the dataset type of its rows
    load: Callable[[], Callable[[Rows], list[dict[str, Any]]]]  # loads the model, returns rows → a prediction for each
    # Predictions of several models, and their thresholds → those of their ensemble; None where predictions have no mean.
    average: Callable[[Sequence[list[dict[str, Any]]], Sequence[float]], list[dict[str, Any]]] | None = None
    threshold: Callable[[], float] = float  # from which probability on the model says a label, where it says several


class Stage(ABC):
    """One kind of stage. A script in stages/ defines a subclass and exports it under the name `STAGE`.

    Options that decide what the stage reads, takes or gives are heard in `signature`, but `takes` lists every role that it may
    ask for: flags and profiles know no other. What needs torch is imported inside of methods, since a node that is up to date
    ends without it.
    """

    title: ClassVar[str]  # for report and card: "SFT"
    about: ClassVar[str]  # what comes out, in one sentence
    reads: ClassVar[str] = ""
    takes: ClassVar[Mapping[str, tuple[str, ...]]] = {PARENT: ("causal",)}  # every role, also those that only options ask for
    gives: ClassVar[str] = "causal"
    makes: ClassVar[str] = ""
    optional: ClassVar[tuple[str, ...]] = ()
    Options: ClassVar[type]  # a frozen dataclass of our own options
    streams: ClassVar[bool] = False  # whether it can read rows while it trains, of a recipe with `stream: yes`
    library: ClassVar[str | None] = None  # dotted name of the class that owns every other key, unless options decide
    defaults: ClassVar[Mapping[str, Any]] = {}  # ours, for keys of that class
    ignores: ClassVar[Mapping[str, str]] = {}  # keys of that class which it does not read → why
    primary: ClassVar[tuple[Against, ...]] = ()  # the first that was measured is what a push goes by
    given_as: ClassVar[str] = ""  # the word of `make new` that brings its input: base, text, chats or pairs; "": left out there

    @property
    def kind(self) -> str:
        """The name of the script."""
        return self.script.stem

    @property
    def script(self) -> Path:
        """The file that declares the stage."""
        return Path(str(sys.modules[type(self).__module__].__file__)).resolve()

    @property
    def story(self) -> str:
        """The script's docstring, which --help prints."""
        return str(sys.modules[type(self).__module__].__doc__)

    def split(self, values: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return our options as their dataclass, and the keys that belong to the library, with our defaults for them."""
        names = {field.name for field in fields(self.Options)}
        ours = {key: value for key, value in values.items() if key in names}
        return self.Options(**ours), {key: value for key, value in {**self.defaults, **values}.items() if key not in names}

    def library_of(self, values: Mapping[str, Any]) -> str | None:
        """Return the dotted name of the class that owns every other key, under the values that are given, unchecked as yet."""
        return self.library

    def signature(self, options: Any) -> Signature:
        """Return what goes in and comes out under these options; UserError where they fit nothing."""
        return Signature(self.reads, self.takes, self.gives, self.makes, self.optional)

    def declared(self, options: Any) -> Signature:
        """Return the signature; UserError also where it has a role that `takes` lacks, which no profile and no flag could fill."""
        found = self.signature(options)
        if unknown := [role for role in found.takes if role not in self.takes]:
            raise UserError(
                f"{self.script}: signature: {' and '.join(unknown)}: `takes` must list every role that options may ask for"
            )
        return found

    def families(self) -> tuple[str, ...]:
        """Return the families of models that it can go on from, whatever the options."""
        return tuple(self.takes.get(PARENT, ()))

    def judged_by(self, options: Any) -> tuple[Against, ...]:
        """Return the metrics that the stage is judged by, the most telling one first."""
        return self.primary

    def evaluators(self, options: Any) -> Sequence[Any]:
        """Return evaluators of its own, beside those that fit the type of its rows and the family of its model."""
        return ()

    def predictor(self, options: Any, folder: str) -> Predictor | None:
        """Return what predicts unlabelled rows with the model in a folder; None where the model is not asked row by row."""
        return None

    def sources(self, options: Any) -> list[Path]:
        """Return files that count as input beside the recipe's."""
        return []

    def digests(self, options: Any) -> dict[str, str]:
        """Return more that the result depends on, by name and digest, such as the code of a judge that grades answers."""
        return {}

    def modules(self, options: Any) -> list[Path]:
        """Return the files of our code that the options choose by name, such as an objective."""
        return []

    def positions(self, options: Any) -> int | None:
        """Return how many positions its model has where the options say so; None where it keeps those of its parent."""
        return None

    def longest(self, options: Any) -> int | None:
        """Return how many tokens the longest row that it reads may have; 0 where rows are no texts, None where a library's key says."""
        return getattr(options, "max_length", None)

    def parameters(self, options: Any) -> int:
        """Return how many parameters a model without a parent has at least; 0 where the options don't say."""
        return 0

    def note(self, options: Any) -> str:
        """Return a sentence that explains the marked tokens of its batches, where they need one."""
        return ""

    def load_model(self, options: Any, folder: str) -> Any:
        """Return the model that the stage left in a folder."""
        from pipeline.models import checkpoint

        return checkpoint.load(folder)

    def processor(self, options: Any, folder: str) -> Any:
        """Return what makes the input of that model: a tokenizer, for pictures an image processor, or both; None where rows are the input."""
        from pipeline.models import processors

        return processors.load(folder)

    def sample_inputs(self, options: Any) -> dict[str, Any]:
        """Return what that model can be asked with, name → tensor, where it reads neither text nor pictures."""
        return {}

    def pipeline_tag(self, options: Any) -> str:
        """Return what the hub calls the use of that model, where its class does not tell."""
        return ""

    def rows(self, run: Run) -> Rows:
        """Return the rows that `batches` gets; UserError if the data is broken or nothing is left."""
        return run.rows()

    def batches(self, run: Run, rows: Rows, tokenizer: Any, model: Any) -> Batches:
        """Return what the trainer reads; called by training and again by the mask proof. UserError where nothing is learned.

        `model` is only looked at: by its positions, and whether it keeps packed documents apart.
        """
        raise NotImplementedError(f"{self.kind} has no batches")

    def length(self, row: Row, tokenizer: Any) -> int:
        """Return how many tokens a row has for this stage; asked by `make new` where it has `given_as` and reads rows."""
        raise NotImplementedError(f"{self.kind} measures no rows")

    def starter(self, facts: Facts) -> dict[str, Lines]:
        """Return the nodes that `make new` writes for this stage: what follows the kind in the node's name → its keys."""
        raise NotImplementedError(f"{self.kind} starts no profile")

    @abstractmethod
    def train(self, run: Run) -> None:
        """Leave a complete model folder, or rows, in `run.result`."""
