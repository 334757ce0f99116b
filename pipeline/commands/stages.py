"""The commands that run stages, in the order of work."""

from __future__ import annotations

from typing import Any

import click

from ..terminal.options import (
    device_option,
    dry_run_option,
    look_options,
    pair_options,
    retry_option,
    shard_option,
    shared_options,
    text_batch_option,
    vae_batch_option,
    ways_options,
)
from ..terminal.run_command import run_named


@click.command()
@shared_options
@dry_run_option
@pair_options
@look_options
def pair(**given: Any) -> None:
    """Match targets, references and captions; decide geometry; find what is wrong."""
    run_named("pair", **given)


@click.command("cache-vae")
@shared_options
@dry_run_option
@ways_options
@vae_batch_option
@shard_option
@pair_options
@retry_option
def cache_vae(**given: Any) -> None:
    """Encode targets and references with the VAE; only what is missing."""
    run_named("cache-vae", **given)


@click.command("cache-embeds")
@shared_options
@dry_run_option
@ways_options
@text_batch_option
@shard_option
@pair_options
@retry_option
def cache_embeds(**given: Any) -> None:
    """Encode references and captions with Qwen2.5-VL; only what is missing."""
    run_named("cache-embeds", **given)


@click.command("cache-base")
@shared_options
@dry_run_option
@device_option
def cache_base(**given: Any) -> None:
    """Keep the frozen transformer as training needs it: lighter, and loaded in seconds."""
    run_named("cache-base", **given)


@click.command()
@shared_options
@dry_run_option
@ways_options
@vae_batch_option
@text_batch_option
@pair_options
@click.option("--prepare", is_flag=True, help="Run the earlier stages first.")
def train(prepare: bool, **given: Any) -> None:
    """Train on the caches, and nothing else. Run the same command again to go on."""
    run_named("train", all_stages=prepare, **given)


@click.command()
@shared_options
@dry_run_option
@ways_options
@vae_batch_option
@text_batch_option
@pair_options
def run(**given: Any) -> None:
    """Run all stages in order, each doing only what is missing."""
    run_named("run", all_stages=True, **given)
