"""One self-contained page about a profile's finished stages, made from their records, their data and their tokenizers."""
