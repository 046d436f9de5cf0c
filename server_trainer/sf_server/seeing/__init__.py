"""Seeing what a run does: one snapshot of its state, and the ways to show it. Reads only; nothing here can disturb a run."""
