"""`sf-bench soak`: a server under devices that keep sending; memory and open files over time, and whether they are flat."""
