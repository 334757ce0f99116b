"""The parts that both caching stages share: they feed an encoder; the encoders are in cache_*/."""
