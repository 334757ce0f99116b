"""Weights in few bits, and the layer that computes with them."""
