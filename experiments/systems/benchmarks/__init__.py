"""Every work beside its peers on this CPU: seconds, memory, growth, and that both do the same."""
