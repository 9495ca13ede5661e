"""The demo: a tiny model learns arithmetic, first by imitation, then by reward."""
