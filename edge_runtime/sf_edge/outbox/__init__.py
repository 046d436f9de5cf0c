"""The device's durable queue."""
