"""The measured pages of docs/, made from the records in benchmarks/results."""
