"""Recipe → rows of a dataset type → tokens → batches."""
