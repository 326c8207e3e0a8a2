"""Faults by kind, a file for each."""
