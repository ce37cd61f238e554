"""Who talks to whom: the collectives of every program of `programs`, read off its compiled form."""
