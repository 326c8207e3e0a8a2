"""Metrics in the form of the `evaluate` library; each file also loads by `evaluate.load(path)`, offline."""
