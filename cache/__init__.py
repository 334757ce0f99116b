"""What is kept on disk: whole or not at all, named by content. Knows no picture and no model."""
