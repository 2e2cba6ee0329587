"""Conditions of an image: a class or a prompt."""
