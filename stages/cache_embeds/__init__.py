"""cache-embeds: each distinct reference set becomes an image prefix, each caption a text tail."""
