"""From stored samples to an adapter."""
