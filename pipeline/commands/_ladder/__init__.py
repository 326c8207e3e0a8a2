"""The parts of `make ladder`."""
