"""What the processes of tests/forked.py have imported before they begin."""

import os

from pipeline.system.process import _quiet

_quiet()
os.environ["HF_HUB_DISABLE_XET"] = "1"  # which a push sets before it imports the library

import datasets  # noqa: E402, F401
import peft  # noqa: E402, F401
import transformers.trainer  # noqa: E402, F401
import trl.trainer.dpo_trainer  # noqa: E402
import trl.trainer.sft_trainer  # noqa: E402, F401

import tests.forked  # noqa: E402, F401
