"""The run page: what a run has learned so far, as one HTML file that needs nothing else."""
