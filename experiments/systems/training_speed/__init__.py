"""One training step here and in PyTorch: the same network, batch, loss and update, side by side."""
