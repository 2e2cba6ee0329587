"""Serves plans over HTTP: OpenAI's images API, and a page for people."""
