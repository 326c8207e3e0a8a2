"""What `make serve` is made of: what may be asked, the generation of an answer, the routes."""
