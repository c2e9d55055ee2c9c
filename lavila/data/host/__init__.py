"""From bytes to pictures on CPU threads, without DALI."""
