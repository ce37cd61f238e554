"""Every program compiled for TPUs that are not on this machine: collectives, memory, FLOPs."""
