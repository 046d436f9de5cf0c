"""The store of received samples, and what is known of the devices."""
