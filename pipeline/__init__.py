"""What the stages share: configuration, manifests, data, checkpoints, objectives, evaluation."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
