"""The plan file: graphs, weights, engines and a manifest in one memory-mapped file."""
