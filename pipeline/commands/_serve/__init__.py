"""What `make serve` is made of: the requests that it accepts, the generation of an answer, the routes."""
