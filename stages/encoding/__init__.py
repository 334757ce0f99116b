"""What both caching stages share: how an encoder is fed; the encoders are in cache_*/."""
