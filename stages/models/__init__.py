"""The only code that imports diffusers, transformers and peft."""
