"""`sf-bench ingest`: what the server's receiving side can take in, from how many devices, and how fairly."""
