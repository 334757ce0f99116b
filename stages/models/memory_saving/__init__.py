"""Ways to take less device memory in a step: recomputing, offloading, streaming."""
