"""The link to the server: connection, keys, and what became of it."""
