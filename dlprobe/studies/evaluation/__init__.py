"""Score maps of a manifest's images, kept on disk; named protocols, robustness and guards computed from them."""
