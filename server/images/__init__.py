"""The images API: requests, answers, results."""
