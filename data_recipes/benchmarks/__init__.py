"""Tasks of our own for lm-evaluation-harness: each a YAML file in its format, with the Python file that makes its questions.

`make benchmark` finds them by the name of their `task:`, as it finds the harness's own and those of a folder that is given.
"""
