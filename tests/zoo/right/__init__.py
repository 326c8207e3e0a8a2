"""Unusual setups that are right: none may be refused, none may be warned of."""
