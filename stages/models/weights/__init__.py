"""Weights read from and written to files tensor by tensor."""
