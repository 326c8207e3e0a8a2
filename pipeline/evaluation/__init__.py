"""Held-out figures with intervals: scoring, generation, metrics, bootstrap."""
