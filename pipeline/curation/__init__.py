"""Curation: rows are cleaned by rules, and duplicates, contaminated rows and personal data are found, at any size of data."""
