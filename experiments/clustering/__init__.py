"""Clusters of real features, compared with the truth, and balance at full size."""
