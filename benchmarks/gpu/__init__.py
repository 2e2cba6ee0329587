"""The parts of `benchmarks.gpu_check`, each of which runs in its own process."""
