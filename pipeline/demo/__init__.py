"""The demo: its pictures, its tour of all stages, its curve; nothing that a real run uses."""
