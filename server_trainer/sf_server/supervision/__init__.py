"""The two processes of a run: started, watched, started again, ended together."""
