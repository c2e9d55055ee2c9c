"""How fast one's own videos are indexed, searched and shown."""
