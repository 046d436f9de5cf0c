"""The dashboard: one page about one run, on loopback, without login and without any way to change something."""
