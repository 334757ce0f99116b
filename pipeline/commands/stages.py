"""The commands that run stages, in the order of work."""

from __future__ import annotations

from typing import Any

import click

from ..options import (
    PAIR_OPTIONS,
    device_option,
    dry_run_option,
    look_options,
    options_of_stages,
    pair_options,
    parted,
    shard_option,
    shared_options,
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
@device_option
@shard_option
def cache_vae(device: str, shard: str | None, **shared: Any) -> None:
    """Encode targets and references with the VAE; only what is missing."""
    run_named(
        ("cache-vae",),
        command="cache-vae",
        options={"cache-vae": {"device": device, "shard": shard}},
        **shared,
    )


@click.command("cache-embeds")
@shared_options
@dry_run_option
@device_option
@shard_option
def cache_embeds(device: str, shard: str | None, **shared: Any) -> None:
    """Encode references and captions with Qwen2.5-VL; only what is missing."""
    run_named(
        ("cache-embeds",),
        command="cache-embeds",
        options={"cache-embeds": {"device": device, "shard": shard}},
        **shared,
    )


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
@device_option
@pair_options
@click.option("--prepare", is_flag=True, help="Run the earlier stages first.")
def train(device: str, on_reject: str, max_rejected: int, prepare: bool, **shared: Any) -> None:
    """Train on the caches, and nothing else. Run the same command again to go on."""
    from ..runner import ORDER

    names = ORDER if prepare else ("train",)
    options = options_of_stages(device, on_reject, max_rejected)
    run_named(names, command="train", options=options, **shared)


@click.command()
@shared_options
@dry_run_option
@device_option
@pair_options
def run(device: str, on_reject: str, max_rejected: int, **shared: Any) -> None:
    """All stages in order, each doing only what is missing."""
    from ..runner import ORDER

    run_named(
        ORDER, command="run", options=options_of_stages(device, on_reject, max_rejected), **shared
    )
