"""Training on more than one process: ranks, nodes, and back ends in stages."""
