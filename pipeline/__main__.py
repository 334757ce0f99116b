"""`qedit`, and `python -m qedit.pipeline`: what torchrun and accelerate launch."""

from __future__ import annotations

import signal


def main() -> None:
    """Run the command that was typed.

    Ctrl-C while its code is still being read ends it without a word: nothing has begun.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job may ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ..stages.stop_signals import handle_signals, stop
    from .cli import main as commands

    handle_signals(stop)
    commands(prog_name="qedit")


if __name__ == "__main__":
    main()
