"""Runs the units of work of a run, in this process or by many workers."""
