"""The measurements of disa-bench."""
