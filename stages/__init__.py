"""What each stage computes; stages meet on disk only and never import each other."""
