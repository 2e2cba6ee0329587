"""Schedules and quantisation ranges measured on a model."""
