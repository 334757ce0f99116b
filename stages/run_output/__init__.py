"""What a person opens in output_dir: previews, page, configuration; not checkpoints."""
