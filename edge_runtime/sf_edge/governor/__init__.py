"""When and how hard this device may work."""
