"""cache-vae: pictures and masks become rows; how an encoder is fed is in encoding/."""
