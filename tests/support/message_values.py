"""Examples of what is filled into messages, for docs/messages.md.

They stand under the name of the file that raises the message (with `:function` where functions of
one file differ), by the expression in its f-string. What several files share is under `EVERYWHERE`.
A test names the expressions that are missing here, and those that no message has any more.
"""

from __future__ import annotations

EVERYWHERE = "everywhere"
_FLAVOURS = "edit-v1, edit-v2, edit-v2+, edit-v3"
_HOLDER = "process 4711 on gpu-box (train, since 2026-11-30 20:15)"
_HF_FOLDER = "/models/Qwen-Image-Edit-2509"
_STORE = "cache/vae/edited/4ab4ae5a9f0831b1"
_TABLE = "cache/pairs/edited/f7990e7d51013abf"
_FETCH_AGAIN = "Delete the file and download it again, from where the model came."
_NOT_JSON = "Expecting value: line 1 column 1 (char 0)"

VALUES: dict[str, dict[str, str]] = {
    EVERYWHERE: {
        "', '.join(FLAVOURS)": _FLAVOURS,
        "Path.cwd()": "/home/me/my-run",
        "best_device(device)": "cuda",
        "caption": "7",
        "dataset": "edited",
        "error": _NOT_JSON,
        "fetch_again(path)": _FETCH_AGAIN,
        "flavour.name": "edit-v2",
        "here": "[16, 3072]",
        "key": "48defbf53e5fbd1dcdf8b1aec8e12428",
        "main": "edited",
        "main.id": "edited",
        "output_dir": "output/edited",
        "sample.name": "cat-01.png",
        "str(error).splitlines()[0]": "CUDA out of memory. Tried to allocate 594.00 MiB.",
    },
    # cache/
    "atomic.py": {
        "do": "Make room, or choose a folder on another disk.",
        "error.strerror": "Not a directory",
        "path": "cache/vae/edited",
        "what": "cache/vae/edited cannot be written: the disk is full.",
    },
    "contents.py": {
        "error": "a chunk does not match its checksum",
        "part": f"{_STORE}/parts/gpu-box-4711~3",
        "subject": "Row 48defbf53e5fbd1dcdf8b1aec8e12428",
    },
    "free_space.py": {
        "folders[0][0]": "cache/vae/edited",
        "free / 1000000000.0": "1.2",
        "needed / 1000000000.0": "5.4",
        "what": "10000 latents",
    },
    "lock.py": {
        "folder": "output/edited",
        "path": "output/edited/writer.json",
        "what": f"written by {_HOLDER}",
    },
    "recipe_file.py": {
        "folder": _STORE,
        "path": f"{_STORE}/recipe.json",
        "what": "it is not the recipe that the folder is named after, 4ab4ae5a9f0831b1",
    },
    "rejected_rows.py": {"path": f"{_STORE}/rejected/48defbf53e5fbd1dcdf8b1aec8e12428.json"},
    "store.py": {"self.path": _STORE},
    "tables.py": {
        "error": "Parquet magic bytes not found in footer",
        "path": f"{_TABLE}/pairs-9be1ac34.parquet",
    },
    "workspace.py": {"folder": "/home/me/qedit/cache", "path": "/home/me/qedit/cache/cats"},
    # config/
    "mistakes.py": {
        "'\\n'.join([heading, *(f'  {line}' for line in lines)])": (
            "The configuration has 2 mistakes:\nconfig.json: `lora_rnk` is not a known key; "
            "did you mean `lora_rank`?\ndata.json, dataset edited: `resolution` must be more than "
            "0, not 0"
        ),
    },
    # pipeline/
    "examples.py": {"assignment": "lora_rank=32"},
    "key_lines.py": {"what": "No key has 'sharpness' in its name or meaning"},
    "run_command.py": {"folder": "my-run", "make_it": "Make it: `mkdir -p my-run`."},
    "caches.py": {
        "', '.join(gone)": "/mnt/dogs/cache/pairs/dogs",
        "first.output_dir": "output/dogs",
        "where": "cache/vae/edited/runs/5d0c1f7e.json",
        "manifest_file": "cache/pairs/dogs/11c8f7a2b4e0d395/manifest.json",
        "place": "cache/pairs/dogs/11c8f7a2b4e0d395",
        "place / manifest['pairs']": "cache/pairs/dogs/11c8f7a2b4e0d395/pairs-9be1ac34.parquet",
    },
    "verify.py": {
        "'\\n'.join([*self.lines, self.needed_by(), *self.trained_on_base()])": (
            f"{_STORE}/parts/gpu-box-4711~3: row 48defbf5: a chunk does not match its "
            "checksum\nSamples that need what is damaged: cat-01.png"
        ),
    },
    # stages/encoding, stages/cache_*
    "acceptance.py": {
        "'\\n'.join(lines)": (
            "Rejected samples: 1. Rows that could not be made: 1.\nnot_finite: 1\n"
            "edited: cat-01.png: not_finite: 64 of 65536 numbers"
        ),
        "samples": "1",
        "stage": "cache-vae",
    },
    "devices.py": {"worker.device": "cuda:1", "worker.process.exitcode": "-9"},
    "open_pictures.py": {"path": "edited/cat-01.png"},
    "pipeline.py": {"count": "This does", "device": "cuda", "shown": "edited/poster.png"},
    "work_split.py": {"text": "9"},
    # stages/models/checkpoint, weights
    "checkpoint.py": {
        "' or '.join(fitting)": "edit-v1",
        "', '.join((path.name for path in there)) or 'none'": "checkpoint-500, checkpoint-1000",
        "_go_on(checkpoint)": (
            "Delete output/edited/checkpoint-1000: the same command then goes on from the one "
            "before."
        ),
        "checkpoint / STATE_FILE": "output/edited/checkpoint-1000/state.json",
        "file": "config.json",
        "folder / AREAS_FILE": "models/tiny/areas.json",
        "missing[0]": f"{_HF_FOLDER}/vae/diffusion_pytorch_model.safetensors",
        "name": "edit-v4",
        "others": " (and 2 more)",
        "part": "transformer",
        "path": "output/edited/checkpoint-1000/optimizer.safetensors",
        "repository": "me/my-model",
        "says": "its pipeline is QwenImageEditPipeline",
        "source": "/models/Qwen-Image-Edit",
        "there[-1].name": "checkpoint-1000",
        "wanted": "checkpoint-700",
    },
    "digests.py": {
        "folder": f"{_HF_FOLDER}/vae",
        "missing[0]": "config.json",
        "remember": "cache/digests.json",
        "path": f"{_HF_FOLDER}/vae/diffusion_pytorch_model.safetensors",
    },
    "hub.py": {
        "_by_hand(repository)": (
            "Fetch it on any machine (`hf download Qwen/Qwen-Image-Edit-2509 --local-dir FOLDER`) "
            "and set pretrained_model_name_or_path to the folder."
        ),
        "folder.absolute()": "/home/me/my-run/models/qwen",
        "key": "pretrained_model_name_or_path",
        "name": "models/qwen",
        "named": "Qwen/Qwen-Image-Edit-2509",
        "problem": "does not exist",
        "repository": "Qwen/Qwen-Image-Edit-2509",
        "revision": "v2",
    },
    "config_values.py:as_wrong_use": {"why": "argument of type 'float' is not iterable"},
    "config_values.py:config_object": {"why": "must be at most 1000"},
    "config_values.py": {
        "folder": f"{_HF_FOLDER}/vae",
        "kind": "AutoencoderKLQwenImage",
        "key": "num_layers",
        "path": f"{_HF_FOLDER}/transformer/config.json",
        "value": "1000000000",
    },
    "matching_sizes.py": {
        "folder": f"{_HF_FOLDER}/transformer",
        "found": "txt_in.weight is [3072, 3584]",
        "wanted": "[3072, 4096]",
    },
    "model_files.py": {
        "fetch_again(index)": _FETCH_AGAIN,
        "index": f"{_HF_FOLDER}/transformer/diffusion_pytorch_model.safetensors.index.json",
        "int(numbered[1])": "9",
        "len(names)": "8",
        "path": f"{_HF_FOLDER}/vae/config.json",
    },
    "weights_header.py": {
        "name": "img_in.bias",
        "path": f"{_HF_FOLDER}/vae/diffusion_pytorch_model.safetensors",
        "why": ": it has 253806000 bytes, and its header promises 253806278",
    },
    "streaming.py": {
        "again": _FETCH_AGAIN,
        "error": "header too large",
        "folder": f"{_HF_FOLDER}/vae",
        "gaps[0]": "transformer_blocks.0.attn.to_q.weight",
        "len(gaps)": "12",
        "name": "img_in.weight",
        "path": f"{_HF_FOLDER}/transformer/diffusion_pytorch_model.safetensors",
        "source": f"{_HF_FOLDER}/transformer",
    },
    "device.py": {
        "name": "cuda:4",
        "str(error).splitlines()[0]": "CUDA error: invalid device",
    },
    # stages/models/text
    "caption_length.py": {
        "CAPTION_LIMIT_TOKENS": "1024",
        "error": "No such file or directory (os error 2)",
        "error.do": "Fix the path, or name a repository as owner/name.",
        "error.what": "pretrained_model_name_or_path is models/qwen, which does not exist.",
        "folder": f"{_HF_FOLDER}/tokenizer",
    },
    "prompt_reader.py": {
        "DROPPED_TOKENS": "64",
        "caption": "'Put <|image_pad|> on the left.'",
        "count": "61",
        "token": "<|image_pad|>",
    },
    # stages/pair, stages/samples
    "caption_tables.py": {
        "', '.join(missing)": "caption",
        "', '.join(names)": "filename, text",
        "shape": "UTF-8, a first line of column names, captions with commas in double quotes, "
        "4 MB a line",
        "error": "CSV parse error: Expected 2 columns, got 3",
        "layout.path": "captions.csv",
        "main.caption_strategy": "csv",
    },
    "captions.py": {"entry": "'s/(cat/dog/'", "error": "missing ), unterminated subpattern"},
    "folders.py": {"'\\n'.join(wrong)": "Dataset edited: the folder eddited does not exist."},
    "match.py": {
        "_examples(candidates)": "0001.jpg, 0002.jpg, ...",
        "_examples(targets)": "cat-01.png, cat-02.png, ...",
        "dataset": "original",
    },
    "proposal.py": {
        "' and '.join(map(str, taken))": "config.json and multidatabackend.json",
        "MOST_REFERENCES": "3",
        "folder": "edited",
        "len(references)": "4",
    },
    "recipe.py": {
        "error": "No such file or directory",
        "here": "/data/cats",
        "listed": "filters.txt",
        "there": "/data/dogs",
    },
    "summary.py": {
        "'\\n'.join([what, *rejected_lines(rejections), f'All of them: {listed}'])": (
            "2 of 20 samples are rejected.\nrejected: 2 missing_reference\n"
            "edited: cat-07.png: no picture in original\nedited: cat-09.png: no picture in "
            f"original\nAll of them: {_TABLE}/rejected-07ab5c11.parquet"
        ),
        "do": (
            "Fix the files and run `qedit pair` again, or go on without them: `qedit pair "
            "--on-reject skip` or `--max-rejected 2`."
        ),
    },
    "table.py": {
        "beside": "; what is there was made for edit-v1",
        "count": "2",
        "folder": _TABLE,
        "manifest['samples']": "18",
        "path": f"{_TABLE}/manifest.json",
    },
    "table.py:verified": {"path": f"{_TABLE}/pairs-9be1ac34.parquet"},
    # stages/stores
    "pins.py": {"path": "cache/vae/edited/runs/5d0c1f7e.json"},
    "previews.py:latents": {
        "REMADE": "Previews of the last step are made anew by the next `qedit train`; others are "
        "left out.",
        "self.path": "output/edited/previews/step-000500/00-cat.now.safetensors",
    },
    "run_file.py": {
        "error": "it does not match its checksum",
        "output_dir / RUN_FILE": "output/edited/run.json",
    },
    "run_stores.py": {
        "beside": "",
        "command": "qedit cache-vae",
        "have": "have",
        "len(names)": "17",
        "names[0]": "cat-03.png",
        "row": "edited: cat-01.png: not_finite: 64 of 65536 numbers",
        "row.stage": "cache-vae",
        "self.flavour": "edit-v2",
        "then": "qedit train",
        "total": "256",
        "what": "latents",
    },
    # stages/train, stages/stores
    "sample_rows.py": {
        "error.do": (
            "Delete that folder, or type `qedit verify --drop`; then `qedit run` makes them anew."
        ),
        "error.what": (
            "Row 48defbf53e5fbd1dcdf8b1aec8e12428 is damaged: a chunk does not match its checksum; "
            f"it lies in {_STORE}/parts/gpu-box-4711~3."
        ),
        "names": "cat-01.png",
    },
    "initial_lora.py": {
        "path": "output/edited/lora-start.safetensors",
        "max(lora.ranks)": "32",
        "ranks": "32",
        "settings.init_lora": "cat-hats.safetensors",
        "settings.lora_rank": "16",
    },
    "layers.py": {
        "', '.join(PRESETS)": (
            "attention, joint-attention, attention+mlp, all-linear, all-linear+modulation"
        ),
        "hint": " Did you mean `attn.to_q`?",
        "name": "transformer_blocks.59.attn.to_add_out",
    },
    "layers.py:_refuse_unknown": {"name": "attn.to_query"},
    "learning_rate.py": {
        "', '.join(SCHEDULE_OPTIONS)": "constant, constant_with_warmup, linear, cosine, polynomial",
        "name": "cosin",
        "option": "num_cycles",
        "why": "is not an option of `lr_scheduler` polynomial, which takes lr_end and power",
    },
    "lora.py": {
        "init": "pissa",
        "layer": "transformer_blocks.0.attn.to_out.0",
        "len(layers)": "240",
        "list(value.shape)": "[16, 1024]",
        "min(layers)": "transformer_blocks.0.attn.to_k",
        "name": "transformer_blocks.0.attn.to_q.lora_A.weight",
        "source": "cat-hats.safetensors",
    },
    "memory_plan.py": {"budget_bytes / GIGABYTE": "7.6", "smallest / GIGABYTE": "9.1"},
    "optimizers.py": {
        "error": "No module named 'prodigyopt'",
        "kind.install": "'qedit[optimizers]'",
        "kind.module": "torch.optim",
        "kind.name": "AdamW",
        "kind.package": "prodigyopt",
        "name": "prodigy",
        "reason": "AdamW.__init__() got an unexpected keyword argument 'beta'",
    },
    "phases.py": {
        "'; '.join((source.in_words() for source in sources))": (
            "edited has 20 pairs from step 1 to 500"
        ),
        "before": ", or end the run before with `max_train_steps` 500",
        "step": "501",
    },
    "quantize.py": {
        "device": "mps",
        "error": "No module named 'bitsandbytes'",
        "name": "nf4-bnb",
        "others": "no_change, int8-quanto, int4-quanto",
    },
    "ranks.py": {"self.rank": "1", "self.world": "2", "what": "has ended"},
    "ranks.py:saying_who": {
        "do": "Make room, or choose a folder on another disk.",
        "what": "cache/digests.json cannot be written: the disk is full.",
    },
    "changed_data.py": {
        "'\\n'.join(_ways(settings, standing, steps))": (
            "`--set on_changed_data=continue` goes on from step 1001 with the present pairs"
        ),
        "'\\n'.join(changes)": "dataset edited: 50 pairs added, 1 pair changed",
        "quote(_free_folder(settings))": "output/edited-2",
        "settings.output_dir": "output/edited",
        "standing.step": "1000",
        "until": "1000",
    },
    "run_record.py": {
        "'\\n'.join((f'  {line}' for line in differences))": (
            "learning_rate: 0.0001 there, 5e-05 now"
        ),
        "names": "pytorch_lora_weights.safetensors, optimizer.bin",
        "where": "output/edited",
    },
    "metrics.py": {"name": "wandb"},
    "transformer_result.py": {"folder": "output/edited/transformer"},
    "quantized.py": {
        "MAKE_ANEW": (
            "Run `qedit cache-base`: it makes the base anew. Then run `qedit train` again."
        ),
        "damage": "cache/base/5a0d1c9be2f34706/base-00003.safetensors is not as it was written",
        "path": "cache/base/5a0d1c9be2f34706/base-00003.safetensors",
        "settings.base_model_precision": "int8-quanto",
    },
    "tensor_checksums.py": {
        "again": _FETCH_AGAIN,
        "path": f"{_HF_FOLDER}/transformer/diffusion_pytorch_model.safetensors",
    },
    # preview, inspect, export, demo
    "denoise.py": {"steps": "1"},
    "disk.py": {"'; '.join(lines)": "at cache: 21.4 GB to come, 12.9 GB free"},
    "lora_files.py": {
        "adapter.kind": "dora",
        "source": "output/edited/pytorch_lora_weights.safetensors",
    },
    "merge.py:refuse_target": {"_named_so(to)": "out/cat-hats.safetensors", "to": "out/cat-hats"},
    "merge.py": {
        "base": "/models/Qwen-Image-Edit-2509-int8",
        "len(missing)": "4",
        "list(layer.shape)": "[3072, 3072]",
        "list(own)": "[1024, 1024]",
        "min(missing)": "transformer_blocks.60.attn.to_k",
        "folder": _HF_FOLDER,
        "name": "transformer_blocks.0.attn.to_q",
        "to": "out/transformer",
    },
    "adapter_reading.py": {
        "key": "transformer.transformer_blocks.0.attn.to_q.dora_scale",
        "kind": "dora",
        "layer": "transformer_blocks.0.attn.to_q",
        "path": "loras/cats.safetensors",
    },
    "files.py": {"file": "graphs/cat-hats"},
    "inspect_sample.py": {
        "', '.join(near)": "cat-01.png, cat-10.png",
        "among or len(samples)": "20",
        "len(sample.captions)": "2",
        "len(sample.captions) - 1": "1",
        "name": "cat-1",
        "names": "edited:cat-1.png, photos:cat-1.png",
    },
    "lora_file.py": {
        "error": "header too large",
        "key": "text_encoder.layers.0.q_proj.lora_A.weight",
        "layer": "transformer_blocks.0.attn.to_q",
        "path": "cat-hats.safetensors",
        "shapes": "[16, 3072] and [3072, 8]",
        "what": "down",
        "why": "could not convert string to float: 'six'",
    },
    "pictures.py": {"folder": "qedit-tiny/pictures"},
    "stage.py": {
        "', '.join(map(str, steps))": "0, 500, 1000",
        "step": "700",
        "stored.path": "output/edited/previews/step-000500/00-cat-01.now.safetensors",
    },
    "tiny.py": {"folder": "qedit-tiny/models/edit-v1", "name": "edit-v4"},
    "tour.py": {"folder": "qedit-demo"},
}
