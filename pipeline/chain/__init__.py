"""The life of a node: request, identity, lock, resume, record, why, verify."""
