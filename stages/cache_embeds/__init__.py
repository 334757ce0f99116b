"""cache-embeds: references and captions become rows; encoding/ feeds the encoder."""
