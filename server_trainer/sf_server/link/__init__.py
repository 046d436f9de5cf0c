"""Receiving devices: the socket, the keys, and who may send how much."""
