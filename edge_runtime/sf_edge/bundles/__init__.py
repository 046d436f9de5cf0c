"""Which bundle this device uses, and whether it is what it says."""
