"""The only code that imports diffusers, transformers or peft; nothing here reads caches."""
