"""How much disk, memory and time a run takes, worked out beforehand."""
