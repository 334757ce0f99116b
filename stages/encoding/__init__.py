"""What the two caching stages have in common: how an encoder is fed, and what becomes of rows."""
