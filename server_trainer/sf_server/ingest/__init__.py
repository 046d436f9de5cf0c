"""From a message to a durable sample: what is let in, and what is answered."""
