"""The commands that run stages, in the order of work."""

from __future__ import annotations

from typing import Any

import click

from ..terminal.options import (
    PAIR_OPTIONS,
    device_option,
    dry_run_option,
    encoding_options,
    look_options,
    options_of_stages,
    pair_options,
    parted,
    retry_option,
    shard_option,
    shared_options,
    text_batch_option,
    vae_batch_option,
    ways_options,
)
from .running import run_named


@click.command()
@shared_options
@dry_run_option
@pair_options
@look_options
def pair(**given: Any) -> None:
    """Match targets, references and captions; decide geometry; find what is wrong."""
    options, shared = parted(given, PAIR_OPTIONS)
    run_named(("pair",), command="pair", options={"pair": options}, **shared)


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
    encode("cache-vae", given)


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
    encode("cache-embeds", given)


def encode(stage: str, given: dict[str, Any]) -> None:
    """Run one of the two caching stages."""
    options, shared = encoding_options(given)
    run_named((stage,), command=stage, options={stage: options}, **shared)


@click.command("cache-base")
@shared_options
@dry_run_option
@device_option
def cache_base(device: str, **shared: Any) -> None:
    """Keep the frozen transformer as training needs it: lighter, and loaded in seconds."""
    run_named(
        ("cache-base",),
        command="cache-base",
        options={"cache-base": {"device": device}},
        **shared,
    )


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
    from ..runner import ORDER

    names = ORDER if prepare else ("train",)
    options, shared = options_of_stages(given)
    run_named(names, command="train", options=options, **shared)


@click.command()
@shared_options
@dry_run_option
@ways_options
@vae_batch_option
@text_batch_option
@pair_options
def run(**given: Any) -> None:
    """All stages in order, each doing only what is missing."""
    from ..runner import ORDER

    options, shared = options_of_stages(given)
    run_named(ORDER, command="run", options=options, **shared)
