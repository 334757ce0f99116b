"""The plan of a run, checked before anything heavy is loaded."""
