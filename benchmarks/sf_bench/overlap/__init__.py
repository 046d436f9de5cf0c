"""`sf-bench overlap`: devices that compute once while the server trains, against devices and server that take turns."""
