"""Predictions for devices: they compute the first layers, the server the rest. Nothing of it is kept."""
