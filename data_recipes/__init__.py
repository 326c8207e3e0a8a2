"""Data recipes: one file a data set, YAML or Python."""
