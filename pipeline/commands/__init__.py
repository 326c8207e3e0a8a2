"""What people run that is no stage; `python -m pipeline.commands.NAME`, or `make NAME`."""
