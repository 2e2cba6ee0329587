"""Decides which images share calls, in a thread that the event loop never waits for."""
