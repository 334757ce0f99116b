"""The transformer: its forward, batches of mixed shapes, modulation, compilation."""
