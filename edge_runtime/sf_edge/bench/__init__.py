"""How fast this device is, and what follows from that."""
