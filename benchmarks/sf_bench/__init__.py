"""sf-bench: what a bundle costs on this machine."""
