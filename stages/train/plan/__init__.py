"""What a run is made of, checked before anything heavy is loaded."""
