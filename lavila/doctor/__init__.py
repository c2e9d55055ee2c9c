"""What bounds a training step on this machine."""
