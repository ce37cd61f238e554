"""Every workload and its peers on this CPU: seconds, memory, growth, and equal results."""
