"""sf-edge: the slim device process."""
