"""Who gets which data: clusters of real features against the truth, and balance at full size."""
