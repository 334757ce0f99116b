"""Estimates of the disk space, memory and time that a run takes."""
