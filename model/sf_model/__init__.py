"""Opening a checkpoint, finding its blocks, cutting it in two: shared by exporter, server and benchmarks."""
