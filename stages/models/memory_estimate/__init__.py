"""Estimates of a step's device memory, by arithmetic alone; nothing here is measured."""
