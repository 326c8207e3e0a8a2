"""What `make new` is made of: a survey of somebody's files, the nodes that fit them, their files."""
