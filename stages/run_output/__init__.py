"""Files of output_dir for people and other rooms: run.json, metrics.jsonl, previews, the page."""
