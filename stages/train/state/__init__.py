"""The state that a run resumes from: checkpoints, optimizer state, averages, run.json."""
