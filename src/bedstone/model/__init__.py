"""Resources, the manifest and its JSON Schema."""
