"""What the processes of tests/forked.py have imported before they begin."""

from pipeline.system.process import _quiet

_quiet()

import datasets  # noqa: E402, F401
import peft  # noqa: E402, F401
import transformers.trainer  # noqa: E402, F401
import trl.trainer.dpo_trainer  # noqa: E402
import trl.trainer.sft_trainer  # noqa: E402, F401

import tests.forked  # noqa: E402, F401
