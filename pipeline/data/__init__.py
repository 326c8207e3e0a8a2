"""Recipe → rows of a shape → tokens."""
