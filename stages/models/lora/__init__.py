"""LoRA layers and LoRA files; the loop that trains them is in train/."""
