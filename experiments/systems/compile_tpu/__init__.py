"""Every program compiled for TPUs that are not here: who talks to whom, memory, FLOPs."""
