"""What is kept on disk: whole or not at all, named by content. Knows nothing of pictures or models."""
