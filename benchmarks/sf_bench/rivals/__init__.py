"""The front end of one checkpoint in several runtimes, each in a process of its own, taking turns."""
