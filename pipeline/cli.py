"""The commands, in the order of work."""

from __future__ import annotations

from typing import Any

import click

from ..stages.stop_signals import exit_code_of
from .commands.files import demo, export, init_files
from .commands.looking import inspect, keys, plan, preview
from .commands.stages import cache_base, cache_embeds, cache_vae, pair, run, train
from .commands.upkeep import gc, status, unlock, verify
from .terminal.output import print_object

WHOLE = 1000  # letters: more than any first sentence has


class InOrderOfWork(click.Group):
    """Lists commands as they were added: the order of work, not of the alphabet."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write each command with its whole first sentence, which click would cut off."""
        commands = self.commands.items()
        rows = [(name, command.get_short_help_str(limit=WHOLE)) for name, command in commands]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["as_json"] = "--json" in args
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a wrong option is one JSON object too where `--json` stands."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if ctx.meta["as_json"]:
                message = error.format_message()
                print_object({"error": message, "do": "", "exit_code": error.exit_code})
            raise
        except KeyboardInterrupt as error:  # outside of what reports it
            ctx.exit(exit_code_of(error))


@click.group(
    cls=InOrderOfWork,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="qedit", message="qedit %(version)s")
def main() -> None:
    """Fine-tune Qwen-Image-Edit on pairs of pictures, one stage after the other.

    Every stage can be run again at any time and costs only what has changed.
    Start with `qedit demo`, or with your own two files:

      qedit run --config config.json --data multidatabackend.json
    """


for command in (
    *(pair, cache_vae, cache_embeds, cache_base, train, run),
    *(plan, status, verify, gc, unlock),
    *(inspect, preview, export, init_files, keys, demo),
):
    main.add_command(command)
