"""The loop of every stage, its trainers, its guards, and what of a model is trained."""
