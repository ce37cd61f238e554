"""What one accelerator does of its peak: training, losses, decoding; and whether it is right."""
