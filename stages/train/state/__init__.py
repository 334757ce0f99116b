"""What a run keeps to go on: checkpoints, optimizer state, averages, run.json."""
