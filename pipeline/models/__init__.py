"""Models and tokenizers: build, load, merge, save; families; chat templates."""
