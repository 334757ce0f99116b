"""`python -m qedit.pipeline`: what torchrun and accelerate launch."""

from __future__ import annotations

from .cli import main

main(prog_name="qedit")
