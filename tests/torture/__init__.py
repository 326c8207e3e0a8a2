"""Kill nodes at random moments, let the same command run again, and compare what they end with.

    python -m tests.torture 100 [NODE ...]

The uninterrupted chain is what each kill is compared with: a small profile with a node of each family, some with two
parents, and three that read pictures. For each kill one node starts on the same parents. A file or a line of output shows
that a phase has begun; after a random part of the time that this phase takes, SIGKILL goes to the whole process group.
What is left on disk shows whether the phase was hit; if not, the try is repeated and counted as a miss. Nothing in
pipeline/ knows of this, and which phases a node has is read from what its stage declares.

`chain` is the profile, `attempt` one process that is watched, `kills` hits a phase, `outcome` compares.
"""
